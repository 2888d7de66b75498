"""Lets tests run our Triton kernels on a CPU, by Triton's own interpreter (tests/conftest.py asks for it)."""

from __future__ import annotations

import importlib.util
import inspect

import numpy as np
import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton

if not triton.knobs.runtime.interpret:
    pytest.skip("Triton compiles here: tests/gpu runs the kernels themselves", allow_module_level=True)

from triton.runtime import interpreter

_patch = interpreter._patch_lang_tensor


def _patch_index_too(tensor, scope) -> None:
    """Triton 3.6 turns arrays of one number into Python's integers in a way that numpy 2.4 no longer takes."""
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = _patch_index_too


def _numbers(handle):
    """Triton 3.6 keeps bfloat16 as its bits, and multiplies those."""
    return (handle.data.astype(np.uint32) << 16).view(np.float32) if handle.dtype.scalar.is_bf16() else handle.data


def _dot(self, a, b, d, *_):
    product = np.matmul(_numbers(a), _numbers(b), dtype=d.data.dtype)
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)


interpreter.InterpreterBuilder.create_dot = _dot

_patch_language, _patched = interpreter._patch_lang, set()


def _patch_language_once(function):
    """Triton patches its language anew for every function that a kernel calls, which takes longer than to run it. What
    was patched for the kernel, or for another function of it, stays so until the kernel has ended."""
    core = (interpreter.tl, interpreter.tl.core)
    seen = {value.__name__ for value in function.__globals__.values() if inspect.ismodule(value) and value in core}
    if _patched and seen <= _patched:
        return None  # nobody restores what was patched for a function
    scope = _patch_language(function)
    if not _patched:
        restore = scope.restore

        def restore_all() -> None:
            _patched.clear()
            restore()

        scope.restore = restore_all
    _patched.update(seen)
    return scope


interpreter._patch_lang = _patch_language_once
