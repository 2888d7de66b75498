"""Owns quantized matrices made 16-bit again, piece by piece, and their product with many rows; knows no modules.

A prompt's rows are many enough that the product costs more than writing the weights out once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from shoal.blocks.kernels.variants import DENSE, FOUR_BIT

if TYPE_CHECKING:
    from shoal.blocks.kernels.skinny import Operands

_BLOCK = 2048
_PIECE = 1 << 26  # weights that are written out at a time: 128 MiB
_buffers: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}


@triton.jit
def _four_bit(
    weight_ptr, scales_ptr, code_ptr, inner_ptr, outer_ptr, offset_ptr, out_ptr, start, count,
    NESTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    local = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = start + local  # of a byte: two weights
    inside = 2 * local < count
    pairs = tl.load(weight_ptr + at, mask=inside, other=0).to(tl.int32)
    scale = tl.load(scales_ptr + at // 32, mask=inside, other=0)
    if NESTED:
        outer = tl.load(outer_ptr + at // (32 * 256), mask=inside, other=0.0)
        scale = tl.load(inner_ptr + scale.to(tl.int32)) * outer + tl.load(offset_ptr)
    high = tl.load(code_ptr + (pairs >> 4)) * scale
    low = tl.load(code_ptr + (pairs & 15)) * scale
    to = tl.program_id(0).to(tl.int64) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    tl.store(out_ptr + to, tl.interleave(high, low).to(out_ptr.dtype.element_ty), mask=to < count)


@triton.jit
def _int8(weight_ptr, scales_ptr, out_ptr, start, count, k, BLOCK: tl.constexpr):
    local = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = local < count
    weight = tl.load(weight_ptr + start + local, mask=inside, other=0).to(tl.float32)
    scale = tl.load(scales_ptr + (start + local) // k, mask=inside, other=0.0)
    tl.store(out_ptr + local, (weight * scale / 127.0).to(out_ptr.dtype.element_ty), mask=inside)


def dequantize(operands: Operands, out: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Write rows `first` and on of the matrix to `out [rows, K]`, contiguous; four-bit pieces begin at even rows."""
    o, start = operands, first * operands.in_features
    if o.form == DENSE:
        return out.copy_(o.weight[first : first + out.shape[0]])
    if o.form == FOUR_BIT:
        grid = (triton.cdiv(out.numel(), 2 * _BLOCK),)
        scales = (o.scales, o.code, o.inner, o.outer, o.offset)
        nested = o.outer is not None
        _four_bit[grid](o.weight, *scales, out, start // 2, out.numel(), NESTED=nested, BLOCK=_BLOCK)
    else:
        grid = (triton.cdiv(out.numel(), _BLOCK),)
        _int8[grid](o.weight, o.scales, out, start, out.numel(), o.in_features, BLOCK=_BLOCK)
    return out


def multiply(operands: Operands, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x [T, K]` -> `[T, N]` in x's dtype through 16-bit pieces of the matrix, for any number of rows."""
    n, k = operands.out_features, operands.in_features
    piece = min(n, _piece_rows(k))
    if piece == n:
        return torch.nn.functional.linear(x, dequantize(operands, _scratch(n, k, x.device, x.dtype)), bias)
    out = torch.empty((x.shape[0], n), dtype=x.dtype, device=x.device)
    for first in range(0, n, piece):
        rows = min(piece, n - first)
        part = dequantize(operands, _scratch(rows, k, x.device, x.dtype), first)
        torch.mm(x, part.T, out=out[:, first : first + rows])
    return out if bias is None else out.add_(bias)


def reserve(operands: Operands, dtype: torch.dtype) -> None:
    """Make the shared buffer large enough for this matrix now: it must not grow once a captured graph uses it."""
    rows = min(operands.out_features, _piece_rows(operands.in_features))
    _scratch(rows, operands.in_features, operands.weight.device, dtype)


def _piece_rows(k: int) -> int:
    return max(128, _PIECE // k // 128 * 128)


def _scratch(rows: int, k: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """`[rows, k]` of the one buffer that all matrices of a device share; it only grows."""
    held = _buffers.get((device, dtype))
    if held is None or held.numel() < rows * k:
        held = _buffers[device, dtype] = torch.empty(rows * k, dtype=dtype, device=device)
    return held[: rows * k].view(rows, k)
