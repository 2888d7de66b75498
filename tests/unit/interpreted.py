"""Lets tests run our Triton kernels on a CPU, by Triton's own interpreter (tests/conftest.py asks for it)."""

from __future__ import annotations

import functools
import importlib.util
import inspect

import numpy as np
import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton

if not triton.knobs.runtime.interpret:
    pytest.skip("Triton compiles here: tests/gpu runs the kernels themselves", allow_module_level=True)

from triton.language import core
from triton.language.semantic import TritonSemantic
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


@functools.lru_cache(maxsize=None, typed=True)
def _shape(*sizes):
    """A shape as types have it, its text and the count of its elements; and shape and count as tensors have them.
    Triton makes each of them anew for every value that it computes, which takes longer than to compute it."""
    shape, count = core.tuple(sizes), core.validate_block_shape(sizes)
    return shape, str(shape), count, core.tuple([core.constexpr(size) for size in sizes]), core.constexpr(count)


_block_init = core.block_type.__init__


def _init_block_type(self, element_ty, shape) -> None:
    if not isinstance(shape, list | core.tuple) or not len(shape):
        _block_init(self, element_ty, shape)  # which says what is wrong
    self.element_ty = element_ty
    sizes = shape.values if isinstance(shape, core.tuple) else shape
    self.shape, text, self.numel, *_ = _shape(*[core._unwrap_if_constexpr(one) for one in sizes])
    self.name = f"<{text}, {element_ty}>"


def _init_tensor(self, handle, type) -> None:  # noqa: A002 - Triton's name
    *_, self.shape, self.numel = _shape(*type.shape.values) if type.is_block() else _shape()
    self.handle, self.type, self.dtype = handle, type, type.scalar


core.block_type.__init__, core.tensor.__init__ = _init_block_type, _init_tensor

_number_type = interpreter._get_np_dtype
_scalar_type = functools.cache(_number_type)


def _type_of_numbers(type):  # noqa: A002 - Triton's name
    """Triton fills a table of all types anew for every look into it. Pointers, which are no keys, are not in it."""
    scalar = type.scalar
    return _number_type(scalar) if scalar.is_ptr() else _scalar_type(scalar)


interpreter._get_np_dtype = _type_of_numbers

_type_equals, _broadcast = core.dtype.__eq__, TritonSemantic.broadcast_impl_value
_sanitize = TritonSemantic.binary_op_sanitize_overflow_impl


def _equals(self, other) -> bool:
    return self is other or _type_equals(self, other)


def _broadcast_values(self, left, right):
    """Most have one shape already, which is the same object then: Triton would compare it size by size."""
    one, other = left.type, right.type
    if one.is_block() == other.is_block() and (not one.is_block() or one.shape is other.shape):
        return left, right
    return _broadcast(self, left, right)


def _sanitize_overflow(self, left, right, operation) -> None:
    """Triton computes each sum and product of integers again in 64 bits, and drops what it found but in debugging."""
    if self.builder.options.debug:
        _sanitize(self, left, right, operation)


core.dtype.__eq__, TritonSemantic.broadcast_impl_value = _equals, _broadcast_values
TritonSemantic.binary_op_sanitize_overflow_impl = _sanitize_overflow

_patch_language, _patched = interpreter._patch_lang, set()


@functools.cache
def _languages_of(function) -> frozenset[str]:
    """Names of those of Triton's modules that it is written in."""
    found = (value for value in function.__globals__.values() if inspect.ismodule(value))
    return frozenset(value.__name__ for value in found if value in (interpreter.tl, core))


def _patch_language_once(function):
    """Triton patches its language anew for every function that a kernel calls, which takes longer than to run it. What
    was patched for the kernel, or for another function of it, stays so until the kernel has ended."""
    seen = _languages_of(function)
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
