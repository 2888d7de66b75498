"""Owns quantized matrices times few rows in Triton, for devices that skinny.cu does not serve; knows no modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from shoal.blocks.kernels.variants import FOUR_BIT, INT8

if TYPE_CHECKING:
    from shoal.blocks.kernels.skinny import Operands

_TILE = 64


@triton.jit
def _four_bit(
    x_ptr, x_stride, weight_ptr, scales_ptr, code_ptr, inner_ptr, outer_ptr, offset_ptr, bias_ptr, out_ptr, rows, n,
    K: tl.constexpr, NESTED: tl.constexpr, BIASED: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = row < n
    wide = row.to(tl.int64)
    at = tl.arange(0, 32)
    column = tl.arange(0, ROWS)
    total = tl.zeros((TILE, ROWS), tl.float32)
    for block in range(K // 64):
        pairs = tl.load(
            weight_ptr + wide[:, None] * (K // 2) + block * 32 + at[None, :], mask=inside[:, None], other=0
        ).to(tl.int32)
        x_at = x_ptr + column[None, :] * x_stride + block * 64 + 2 * at[:, None]
        here = (column < rows)[None, :]
        first = tl.load(x_at, mask=here, other=0.0)
        second = tl.load(x_at + 1, mask=here, other=0.0)
        high = tl.load(code_ptr + (pairs >> 4)).to(first.dtype)  # the earlier column is in the high nibble
        low = tl.load(code_ptr + (pairs & 15)).to(first.dtype)
        part = tl.dot(low, second, tl.dot(high, first))
        scale_at = wide * (K // 64) + block
        scale = tl.load(scales_ptr + scale_at, mask=inside, other=0)
        if NESTED:
            outer = tl.load(outer_ptr + scale_at // 256, mask=inside, other=0.0)
            scale = tl.load(inner_ptr + scale.to(tl.int32)) * outer + tl.load(offset_ptr)
        total += part * scale[:, None]
    if BIASED:
        total += tl.load(bias_ptr + row, mask=inside, other=0.0).to(tl.float32)[:, None]
    out_at = out_ptr + column[None, :].to(tl.int64) * n + row[:, None]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (column < rows)[None, :])


@triton.jit
def _int8(
    x_ptr, x_stride, weight_ptr, scales_ptr, bias_ptr, out_ptr, rows, n, K: tl.constexpr,
    BIASED: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = row < n
    at = tl.arange(0, 64)
    column = tl.arange(0, ROWS)
    total = tl.zeros((TILE, ROWS), tl.float32)
    for start in range(0, K, 64):
        here = start + at < K
        x_at = x_ptr + column[None, :] * x_stride + start + at[:, None]
        x = tl.load(x_at, mask=here[:, None] & (column < rows)[None, :], other=0.0)
        weight_at = weight_ptr + row[:, None].to(tl.int64) * K + start + at[None, :]
        weight = tl.load(weight_at, mask=inside[:, None] & here[None, :], other=0)
        total = tl.dot(weight.to(tl.float32).to(x.dtype), x, total)
    total *= (tl.load(scales_ptr + row, mask=inside, other=0.0) / 127.0)[:, None]
    if BIASED:
        total += tl.load(bias_ptr + row, mask=inside, other=0.0).to(tl.float32)[:, None]
    out_at = out_ptr + column[None, :].to(tl.int64) * n + row[:, None]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (column < rows)[None, :])


def fits(operands: Operands) -> bool:
    """Whether the matrix is quantized, and in four bits no block of 64 spans two rows."""
    return operands.form == INT8 or (operands.form == FOUR_BIT and operands.in_features % 64 == 0)


def run(operands: Operands, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x [T, K]`, at most 64 rows -> `[T, N]` in x's dtype; `fits(operands)` must hold."""
    o, rows = operands, x.shape[0]
    x = x if x.stride(1) == 1 else x.contiguous()
    out = torch.empty((rows, o.out_features), dtype=x.dtype, device=x.device)
    grid, padded = (triton.cdiv(o.out_features, _TILE),), max(16, triton.next_power_of_2(rows))
    ends = (bias, out, rows, o.out_features, o.in_features)
    if o.form == FOUR_BIT:
        scales = (o.scales, o.code, o.inner, o.outer, o.offset)
        _four_bit[grid](
            x, x.stride(0), o.weight, *scales, *ends,
            NESTED=o.outer is not None, BIASED=bias is not None, TILE=_TILE, ROWS=padded,
        )  # fmt: skip
    else:
        _int8[grid](x, x.stride(0), o.weight, o.scales, *ends, BIASED=bias is not None, TILE=_TILE, ROWS=padded)
    return out
