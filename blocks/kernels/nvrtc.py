"""Owns compiling CUDA source at run time and launching it (NVRTC and the driver, by ctypes); knows no kernel.

NVRTC comes with torch's CUDA build, so a user needs no compiler. Everything that is missing or fails is a `NvrtcError`,
after which callers take a slower way.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_log = logging.getLogger(__name__)
_INVALID_CONTEXT = 201
_EARLY_START = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class NvrtcError(RuntimeError):
    """There is no NVRTC or driver, or it refused the source or the launch."""


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))


class _Launch(ctypes.Structure):
    """The driver's CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("n_attributes", ctypes.c_uint),
    )


class CudaKernel:
    """A compiled function on one device; launches go to torch's current stream there and may be captured.

    early: a launch may start before the kernel ahead of it ends (compute capability 9.0 and up); the function itself
    waits before it touches what that kernel reads or writes ("programmatic dependent launch" in CUDA's words).
    """

    def __init__(self, cubin: bytes, name: str, device: torch.device, shared_bytes: int, *, early: bool) -> None:
        self._driver, self._device, self._shared = _driver(), device, shared_bytes
        self._context, module, self._function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        self._attributes = (_Attribute * int(early))(*[_Attribute(id=_EARLY_START, value=1)] * int(early))
        with torch.cuda.device(device):
            torch.zeros(1, device=device)  # makes the device's context current in this thread
            self._check(self._driver.cuCtxGetCurrent(ctypes.byref(self._context)))
            self._check(self._driver.cuModuleLoadData(ctypes.byref(module), cubin))
            self._check(self._driver.cuModuleGetFunction(ctypes.byref(self._function), module, name.encode()))
            self._check(self._driver.cuFuncSetAttribute(self._function, _MAX_DYNAMIC_SHARED, shared_bytes))

    def launch(self, grid: tuple[int, int], threads: int, args: Sequence[torch.Tensor | int | None]) -> None:
        """Run on `grid` blocks of `threads`; tensors go as pointers (None as null), integers as C int."""
        values = [ctypes.c_int(a) if isinstance(a, int) else ctypes.c_void_p(_pointer(a)) for a in args]
        places = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        stream = torch.cuda.current_stream(self._device).cuda_stream
        launch = _Launch((*grid, 1), (threads, 1, 1), self._shared, stream, self._attributes, len(self._attributes))
        result = self._driver.cuLaunchKernelEx(ctypes.byref(launch), self._function, places, None)
        if result == _INVALID_CONTEXT:  # this thread's first use of the device
            self._check(self._driver.cuCtxSetCurrent(self._context))
            result = self._driver.cuLaunchKernelEx(ctypes.byref(launch), self._function, places, None)
        self._check(result)

    def _check(self, result: int) -> None:
        if result != 0:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(result, ctypes.byref(text))
            raise NvrtcError(f"CUDA: {(text.value or b'unknown error').decode()} ({result})")


def compile_cubin(source: str, defines: Mapping[str, int], capability: tuple[int, int]) -> bytes:
    """Machine code for one compute capability. Raises NvrtcError with the compiler's words."""
    nvrtc = _nvrtc()
    program = ctypes.c_void_p()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None) != 0:
        raise NvrtcError("NVRTC could not start a program.")
    try:
        options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}", "--std=c++17"]
        options += [f"-D{name}={value}" for name, value in defines.items()]
        words = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), words) != 0:
            raise NvrtcError(f"NVRTC: {_read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)!r}")
        return _read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


@functools.cache
def is_there() -> bool:
    """Whether NVRTC and a driver can be loaded."""
    try:
        _driver()
        _nvrtc()
    except NvrtcError as error:
        _log.warning("The fast kernels are off: %s", error)
        return False
    return True


def _read(size_of: ctypes._NamedFuncPointer, read: ctypes._NamedFuncPointer, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    read(program, buffer)
    return buffer.raw


def _pointer(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@functools.cache
def _driver() -> ctypes.CDLL:
    return _load(["libcuda.so.1", "nvcuda.dll"])


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    major = (torch.version.cuda or "0").partition(".")[0]
    name = f"libnvrtc.so.{major}"
    try:
        return _load([name, f"nvrtc64_{major}0_0.dll"])
    except NvrtcError:
        folders = sorted(Path(torch.__file__).parents[1].glob("nvidia/*/lib"))  # where torch's wheels put it
        for part in (part for folder in folders for part in folder.glob("libnvrtc-builtins.so*")):
            ctypes.CDLL(str(part))  # NVRTC would look for it in the system's folders alone
        return _load([str(folder / name) for folder in folders] or [name])


def _load(names: Sequence[str]) -> ctypes.CDLL:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise NvrtcError(f"None of {', '.join(names)} can be loaded.")
