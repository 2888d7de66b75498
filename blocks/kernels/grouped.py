"""Owns products of tokens with the matrices of the experts that each was sent to, in Triton; knows no modules.

A token and an expert are a pair. Pairs are put in their experts' order on the device, so that an expert's weights are
read once for all its tokens, nothing waits for the host, and a step can be captured in a CUDA graph. A pair's numbers
do not depend on the other pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from shoal.blocks.kernels import skinny
from shoal.blocks.kernels.activation import gated_activation
from shoal.blocks.kernels.variants import FOUR_BIT, INT8, of_experts

if TYPE_CHECKING:
    from shoal.blocks.kernels.skinny import Operands
    from shoal.blocks.kernels.variants import Variant

BLOCK = 64  # columns that share a scale in four bits: what every matrix's columns must be a multiple of
_SORTED, _COMPARED = 16, 256  # pairs that a program places, and with how many it compares them at a time
_FOUR_BIT, _INT8 = tl.constexpr(FOUR_BIT), tl.constexpr(INT8)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Which expert each of a step's pairs belongs to, and the pairs in their experts' order.

    Of T tokens there are `each` pairs, one token's after the other's. order: the pairs of expert 0, then those of
    expert 1 and so on; an expert's begin at `starts [experts + 1]`; owners: the experts in that order. All int32.
    """

    order: torch.Tensor
    owners: torch.Tensor
    starts: torch.Tensor
    each: int

    @property
    def experts(self) -> int:
        return len(self.starts) - 1


@dataclass(frozen=True, slots=True)
class _Shape:
    """What is free in a launch of Triton's: matrix rows and pairs of a tile, columns at a time."""

    tile: int
    rows: int
    step: int


@triton.jit
def _known(chosen, experts):
    """Of states that are no numbers (a graph's padding, a stranger's nonsense) routers choose what there is not."""
    return tl.minimum(tl.maximum(chosen, 0), experts - 1).to(tl.int32)


@triton.jit(do_not_specialize=["pairs", "experts"])
def _sort(chosen_ptr, order_ptr, owners_ptr, starts_ptr, pairs, experts, BLOCK: tl.constexpr, STEP: tl.constexpr):
    placing = tl.cdiv(pairs, BLOCK)
    program = tl.program_id(0)
    places = program < placing
    me = (program - tl.where(places, 0, placing)) * BLOCK + tl.arange(0, BLOCK)
    mine = _known(tl.load(chosen_ptr + me, mask=places & (me < pairs), other=0), experts)
    mine = tl.where(places, mine, me)
    before = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, pairs, STEP):
        other = start + tl.arange(0, STEP)
        theirs = _known(tl.load(chosen_ptr + other, mask=other < pairs, other=0), experts)
        theirs = tl.where(other < pairs, theirs, 2147483647)[None, :]
        same = (theirs == mine[:, None]) & (other[None, :] < me[:, None]) & places
        before += tl.sum(((theirs < mine[:, None]) | same).to(tl.int32), axis=1)
    if places:
        tl.store(order_ptr + before, me, mask=me < pairs)
        tl.store(owners_ptr + before, mine, mask=me < pairs)
    else:
        tl.store(starts_ptr + me, before, mask=me <= experts)


@triton.jit(do_not_specialize=["pairs", "each"])
def _product(
    x_ptr, x_stride, owners_ptr, order_ptr, starts_ptr, share_ptr, weight_ptr, scales_ptr, code_ptr, inner_ptr,
    outer_ptr, offset_ptr, bias_ptr, out_ptr, pairs, each, n, k, FORM: tl.constexpr,
    NESTED: tl.constexpr, BIASED: tl.constexpr, SHARED: tl.constexpr, BY_PAIR: tl.constexpr, TILE: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(1)
    if BY_PAIR:  # the first of an expert's pairs works for all of them
        expert = tl.load(owners_ptr + tl.program_id(1))
    begin = tl.load(starts_ptr + expert)
    end = tl.load(starts_ptr + expert + 1)
    if BY_PAIR:
        end = tl.where(begin == tl.program_id(1), end, begin)
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = row < n
    wide = expert.to(tl.int64) * n + row
    kind = x_ptr.dtype.element_ty
    for first in range(begin, end, ROWS):
        place = first + tl.arange(0, ROWS)
        there = place < end
        pair = tl.load(order_ptr + place, mask=there, other=0).to(tl.int64)
        x_at = x_ptr + (pair if SHARED else pair // each) * x_stride
        total = tl.zeros((TILE, ROWS), tl.float32)
        for start in range(0, k, STEP):
            if FORM == _FOUR_BIT:
                at = tl.arange(0, STEP // 2)
                codes = tl.load(
                    weight_ptr + wide[:, None] * (k // 2) + start // 2 + at[None, :], mask=inside[:, None], other=0
                ).to(tl.int32)
                scale_at = wide[:, None] * (k // 64) + start // 64 + tl.arange(0, STEP // 64)[None, :]
                scale = tl.load(scales_ptr + scale_at, mask=inside[:, None], other=0)
                if NESTED:
                    outer = tl.load(outer_ptr + scale_at // 256, mask=inside[:, None], other=0.0)
                    scale = tl.load(inner_ptr + scale.to(tl.int32)) * outer + tl.load(offset_ptr)
                spread = tl.broadcast_to(scale[:, :, None], (TILE, STEP // 64, 32))
                spread = tl.reshape(spread, (TILE, STEP // 2))
                early = tl.load(x_at[None, :] + start + 2 * at[:, None], mask=there[None, :], other=0.0)
                late = tl.load(x_at[None, :] + start + 2 * at[:, None] + 1, mask=there[None, :], other=0.0)
                high = (tl.load(code_ptr + (codes >> 4)) * spread).to(kind)  # the earlier column is in the high nibble
                low = (tl.load(code_ptr + (codes & 15)) * spread).to(kind)
                total = tl.dot(low, late, tl.dot(high, early, total))
            else:
                at = start + tl.arange(0, STEP)
                weight = tl.load(weight_ptr + wide[:, None] * k + at[None, :], mask=inside[:, None], other=0)
                if FORM == _INT8:
                    weight = weight.to(tl.float32)
                x = tl.load(x_at[None, :] + at[:, None], mask=there[None, :], other=0.0)
                total = tl.dot(weight.to(kind), x, total)
        if FORM == _INT8:
            total *= (tl.load(scales_ptr + wide, mask=inside, other=0.0) / 127.0)[:, None]
        if BIASED:
            total += tl.load(bias_ptr + wide, mask=inside, other=0.0).to(tl.float32)[:, None]
        if SHARED:
            total *= tl.load(share_ptr + pair, mask=there, other=0.0).to(tl.float32)[None, :]
            pair = pair % each * (pairs // each) + pair // each
        out_at = out_ptr + pair[None, :] * n + row[:, None]
        tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=inside[:, None] & there[None, :])


def sort_pairs(indices: torch.Tensor, experts: int) -> Pairs:
    """The pairs of `indices [T, each]`, which are the experts, 0 to `experts` - 1, that each token was sent to; what is
    less or more counts as the first or the last."""
    chosen = indices.reshape(-1)
    pairs, device = len(chosen), chosen.device
    order, owners = torch.empty((2, pairs), dtype=torch.int32, device=device)
    starts = torch.empty(experts + 1, dtype=torch.int32, device=device)
    grid = (triton.cdiv(pairs, _SORTED) + triton.cdiv(experts + 1, _SORTED),)
    _sort[grid](chosen, order, owners, starts, pairs, experts, BLOCK=_SORTED, STEP=_COMPARED)
    return Pairs(order, owners, starts, indices.shape[1])


def product(
    operands: Operands,
    bias: torch.Tensor | None,
    x: torch.Tensor,
    pairs: Pairs,
    *,
    gated: str | None = None,
    shares: torch.Tensor | None = None,
) -> torch.Tensor:
    """`[T * each, N]`, in x's dtype: every pair's token, a row of `x [T, K]`, times its expert's matrix.

    `operands`: all experts' matrices `[N, K]` as one of `[experts * N, K]`; `bias [experts * N]`. gated: see
    KernelLinear. With `shares [T, each]`, float32, x has a row for every pair, and what comes is `[each, T, N]` in
    float32, multiplied with the shares: summed over the first axis, it is what the experts together give.
    """
    shares = None if shares is None else shares.reshape(-1)
    if skinny.fits(operands) and (chosen := _variant(operands, pairs, gated)) is not None:
        out = skinny.run_experts(operands, x, pairs, *chosen, bias=bias, gated=gated, shares=shares)
    else:
        out = _portable(operands, bias, x, pairs, shares)
        out = out if gated is None else gated_activation(out, gated, out.dtype)
    return out if shares is None else out.view(pairs.each, -1, out.shape[-1])


def _variant(operands: Operands, pairs: Pairs, gated: str | None) -> tuple[Variant, int] | None:
    n = operands.out_features // pairs.experts
    mean = len(pairs.order) / min(len(pairs.order), pairs.experts)
    return of_experts(operands.form, n, operands.in_features, mean, gated=gated is not None)


def _portable(
    o: Operands, bias: torch.Tensor | None, x: torch.Tensor, pairs: Pairs, shares: torch.Tensor | None
) -> torch.Tensor:
    count, n = len(pairs.order), o.out_features // pairs.experts
    shape = _shape(o, count / min(count, pairs.experts))
    x = x if x.stride(1) == 1 else x.contiguous()
    out = torch.empty((count, n), dtype=x.dtype if shares is None else torch.float32, device=x.device)
    by_pair = count < pairs.experts
    grid = (triton.cdiv(n, shape.tile), count if by_pair else pairs.experts)
    _product[grid](
        x, x.stride(0), pairs.owners, pairs.order, pairs.starts, shares, o.weight, o.scales, o.code, o.inner, o.outer,
        o.offset, bias, out, count, pairs.each, n, o.in_features, FORM=o.form, NESTED=o.outer is not None,
        BIASED=bias is not None, SHARED=shares is not None, BY_PAIR=by_pair, TILE=shape.tile, ROWS=shape.rows,
        STEP=shape.step,
    )  # fmt: skip
    return out


def _shape(operands: Operands, mean: float) -> _Shape:
    """What was fastest on an H100 for so many pairs an expert."""
    rows = 16 if mean <= 16 else 32 if mean <= 32 else 64
    step = 128 if operands.in_features % 128 == 0 and (rows < 64 or operands.form == FOUR_BIT) else 64
    return _Shape(64, rows, step)
