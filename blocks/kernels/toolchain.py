"""Owns whether Triton can work here, for a device and with a compiler; must not import it, which takes a second.

Triton compiles the code that loads and starts its kernels with the machine's own C compiler (triton/runtime/build.py).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import torch

# Triton 3.6 has no products of matrices for older cards, in float16 neither: it writes them out number by number, and
# compiling one of our kernels for compute capability 7.5 takes minutes.
OLDEST = (8, 0)
_COMPILE_S = 60.0
_SOURCE = "#include <Python.h>\n#include <dlfcn.h>\nint shoal_probe(void) { return Py_IsInitialized(); }\n"
_INSTALL = "install a C compiler and Python's headers (on Debian: gcc, libc6-dev, python3-dev) and start again"


def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def missing(device: torch.device) -> str | None:
    """What Triton lacks on a CUDA or ROCm device, and what to do; None: nothing. Tried once."""
    if not has_triton():
        return "Triton is not installed: pip install triton, and start again"
    if torch.version.hip is None and (found := torch.cuda.get_device_capability(device)) < OLDEST:
        return "it has compute capability {}.{}, and Triton needs {}.{}".format(*found, *OLDEST)
    fault = compiler_fault()
    return None if fault is None else f"Triton cannot compile, since {fault}: {_INSTALL}"


@functools.cache
def compiler_fault() -> str | None:
    """Why the compiler that Triton would take does not compile what Triton writes; None: it does."""
    compiler = os.environ.get("CC")
    if compiler is None and (compiler := shutil.which("gcc") or shutil.which("clang")) is None:
        return "there is neither gcc nor clang"
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _fault(compiler, Path(folder))
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{compiler!r} does not run ({error})"


def _fault(compiler: str, folder: Path) -> str | None:
    source = folder / "probe.c"
    source.write_text(_SOURCE, encoding="utf-8")
    command = [compiler, str(source), "-shared", "-fPIC", "-o", str(folder / "probe.so"), f"-I{_headers()}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_COMPILE_S)
    if done.returncode == 0:
        return None
    said = [line.removeprefix(f"{folder}/") for line in done.stderr.splitlines() if "error" in line]
    return f"{compiler!r} fails ({said[0] if said else f'exit status {done.returncode}'})"


def _headers() -> str:
    """Where Triton looks for Python.h: not where Debian's own scheme puts those of what is installed beside."""
    scheme = sysconfig.get_default_scheme()
    return sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]
