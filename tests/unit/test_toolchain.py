"""Our GPU kernels are used where Triton can work, and where not one line says what is missing."""

from __future__ import annotations

import logging
import shutil
import subprocess

import pytest
import torch
from shoal.blocks import kernels
from shoal.blocks.kernels import _tell, has_kernels, toolchain

CUDA = torch.device("cuda")
COMPILER = shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs gcc or clang")


@pytest.fixture
def gpu(monkeypatch):
    """As on a machine with a GPU of this capability, and with Triton."""

    def forget() -> None:
        for known in (toolchain.missing, toolchain.compiler_fault, _tell):
            known.cache_clear()

    def of(capability: tuple[int, int], hip: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
        monkeypatch.setattr(torch.version, "hip", hip)

    monkeypatch.setattr(toolchain, "has_triton", lambda: True)
    monkeypatch.delenv("CC", raising=False)
    of((8, 6))
    forget()
    yield of
    forget()


def told(caplog) -> str:
    """What is said of a device that has no kernels, however often it is asked for them."""
    with caplog.at_level(logging.WARNING):
        found = [has_kernels(CUDA, dtype) for dtype in (torch.bfloat16, torch.float16, torch.bfloat16)]
    assert not any(found)
    (line,) = caplog.messages
    assert line.startswith("This GPU computes through PyTorch alone, which is slower: ")
    assert "\n" not in line
    return line


def test_with_a_compiler_and_a_card_of_today_there_are_kernels(gpu, caplog):
    assert has_kernels(CUDA, torch.bfloat16)
    assert has_kernels(CUDA, torch.float16)
    assert caplog.messages == []


def test_triton_finds_a_compiler_exactly_where_it_is_looked_for_here(gpu, monkeypatch, tmp_path):
    """Against Triton's own code: CC before PATH, and as it stands, even if that does not run."""
    build = pytest.importorskip("triton.runtime.build", reason="Triton is not installed")
    source = tmp_path / "probe.c"
    source.write_text(toolchain._SOURCE)

    def works() -> bool:
        try:
            build._build("probe", str(source), str(tmp_path), [], [], [], [])
        except (RuntimeError, OSError, subprocess.CalledProcessError):
            return False
        return True

    for path, cc in ((None, None), ("", None), (None, ""), (None, "no-such-compiler"), ("", COMPILER), (None, "false")):
        with monkeypatch.context() as patched:
            if path is not None:
                patched.setenv("PATH", path)
            if cc is not None:
                patched.setenv("CC", cc)
            toolchain.compiler_fault.cache_clear()
            assert (toolchain.compiler_fault() is None) is works(), (path, cc)


def test_without_a_compiler_one_line_says_what_to_install(gpu, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    line = told(caplog)
    assert "there is neither gcc nor clang" in line
    assert "install a C compiler" in line


def test_without_python_s_headers_a_compiler_is_not_enough(gpu, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(toolchain.sysconfig, "get_paths", lambda _scheme: {"include": str(tmp_path)})
    line = told(caplog)
    assert "Python.h" in line
    assert "python3-dev" in line


def test_a_compiler_that_does_not_run_is_named(gpu, monkeypatch, caplog):
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    assert "'no-such-compiler -m64' does not run" in told(caplog)


@pytest.mark.parametrize("capability", [(6, 1), (7, 5)])
def test_older_cards_have_no_kernels_and_need_no_compiler(gpu, monkeypatch, tmp_path, caplog, capability):
    monkeypatch.setenv("PATH", str(tmp_path))
    gpu(capability)
    line = told(caplog)
    assert "{}.{}, and Triton needs 8.0".format(*capability) in line
    assert "install" not in line


def test_amd_s_cards_have_other_capabilities(gpu):
    gpu((1, 0), hip="6.4")
    assert has_kernels(CUDA, torch.bfloat16)


def test_without_triton_it_is_asked_for(gpu, monkeypatch, caplog):
    monkeypatch.setattr(toolchain, "has_triton", lambda: False)
    assert "pip install triton" in told(caplog)


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.bfloat16), ("mps", torch.float16), ("cuda", torch.float32)]
)
def test_where_there_are_no_kernels_anyway_nothing_is_tried(monkeypatch, device, dtype):
    monkeypatch.setattr(kernels, "missing", None)
    assert has_kernels(torch.device(device), dtype) is False
