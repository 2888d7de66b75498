"""Owns compiling our C for this machine's processor, and keeping what came of it; knows no kernel.

What is compiled lies beside its source, as Python keeps its own, or in the user's cache where nothing can be written
there. Without a compiler there is no library, and callers take a slower way.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from shoal.blocks.whole_file import write_whole

_log = logging.getLogger(__name__)

COMPILERS = ("cc", "gcc", "clang")
_ALWAYS = ("-O3", "-std=gnu11", "-fno-math-errno", "-shared", "-fPIC", "-pthread")
# The first that a compiler takes: this processor's own instructions, by either of their names.
_IF_KNOWN = ("-march=native", "-mcpu=native")
_COMPILE_S = 60.0


class CompileError(RuntimeError):
    """There is no compiler, or it refused the source, or its work cannot be kept or loaded."""


@functools.cache
def library(name: str, *options: str) -> ctypes.CDLL:
    """`name` in this folder, with the headers there, compiled with `options`. Raises CompileError, in one line."""
    source = Path(__file__).with_name(name)
    text = [file.read_bytes() for file in (source, *sorted(source.parent.glob("*.h")))]
    key = hashlib.blake2b(repr((text, options, _IF_KNOWN, _processor())).encode(), digest_size=8)
    file = f"{source.stem}-{key.hexdigest()}.so"
    folders = _folders(source)
    for folder in folders:
        with suppress(CompileError):
            return _load(folder / file)
    made = _compile(source, options)
    try:
        return _load(_keep(made, folders, file))
    finally:
        made.unlink(missing_ok=True)


def _processor() -> str:
    """What decides which instructions there are: a home folder may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    flags = [line for line in lines if line.lower().startswith(("flags", "features"))]
    return f"{platform.machine()} {flags[0] if flags else platform.processor()}"


def _folders(source: Path) -> tuple[Path, ...]:
    """Where libraries are kept, and looked for."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return source.with_name("__pycache__"), cache / "shoal"


def _compile(source: Path, options: tuple[str, ...]) -> Path:
    """A shared library in a temporary file."""
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise CompileError(f"there is no C compiler ({', '.join(COMPILERS)})")
    try:
        handle, target = tempfile.mkstemp(suffix=".so")
    except OSError as error:
        raise CompileError(f"there is no room for what {compiler} makes ({error.strerror})") from error
    os.close(handle)
    said = ""
    for extra in _IF_KNOWN:
        command = [compiler, *_ALWAYS, extra, *options, str(source), "-o", target, "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_COMPILE_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
            break
        if done.returncode == 0:
            _log.debug("%s", " ".join(command))
            return Path(target)
        said = said or done.stderr
    Path(target).unlink(missing_ok=True)  # most linkers have removed what they could not make
    raise CompileError(f"{compiler} does not compile {source.name}: {' '.join(said.split())[:300]}")


def _keep(made: Path, folders: tuple[Path, ...], file: str) -> Path:
    """Put it in the first folder that takes it, in one step: others may be looking for it."""
    refused: OSError | None = None
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / file, made.read_bytes(), 0o755)
        except OSError as error:
            refused = error
            continue
        return folder / file
    _log.info("%s cannot be kept and is compiled at each start: %s", file, refused)
    return made


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CompileError(f"{path} cannot be loaded: {error}") from error
