"""Owns the residual stream's kernel: add what a sub-layer computed, and norm for the next; must not know sub-layers.

RMS norm is Zhang and Sennrich, 2019 (arXiv:1910.07467).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from shoal.blocks.kernels.early import early, wait_for_inputs

if TYPE_CHECKING:
    from shoal.blocks.kernels.skinny import Order
    from shoal.blocks.structure import RMSNorm


@triton.jit
def normed(x, weight_ptr, at, keep, width, eps, PLUS_ONE: tl.constexpr):
    """RMS norm over axis 0 of the numbers `x`, zero where `keep` is false."""
    weight = tl.load(weight_ptr + at, mask=keep, other=0.0).to(tl.float32)
    if PLUS_ONE:
        weight += 1.0
    return x * tl.rsqrt(tl.sum(x * x, 0) / width + eps) * weight


@triton.jit
def ordered(row, at, TILES: tl.constexpr, DENSE: tl.constexpr):
    """Where number `at` of a row lies among states in a `skinny.Order`."""
    inside = at % 64
    if DENSE:
        part, lane = inside // 32, inside % 32 // 8
    else:
        part, lane = inside % 16 // 8, inside // 16
    line = (at // 64 * TILES + row // 8) * 2 + part
    return (line * 32 + row % 8 * 4 + lane) * 8 + at % 8


@triton.jit(do_not_specialize=["part_stride"])
def _add_norm(
    residual_ptr,
    delta_ptr,
    out_ptr,
    post_ptr,
    norm_ptr,
    part_stride,
    row_stride,
    scale,
    post_eps,
    norm_eps,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    DELTA: tl.constexpr,
    FRESH: tl.constexpr,
    POST: tl.constexpr,
    NORM: tl.constexpr,
    POST_PLUS_ONE: tl.constexpr,
    NORM_PLUS_ONE: tl.constexpr,
    TILES: tl.constexpr,
    DENSE: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    keep = at < WIDTH
    x = tl.zeros((BLOCK,), tl.float32) if FRESH else tl.load(residual_ptr + row * WIDTH + at, mask=keep, other=0.0)
    if DELTA:
        start = delta_ptr + row * row_stride
        delta = tl.load(start + at, mask=keep, other=0.0).to(tl.float32)
        for part in tl.static_range(1, PARTS):
            delta += tl.load(start + part * part_stride + at, mask=keep, other=0.0).to(tl.float32)
        if POST:
            delta = normed(delta, post_ptr, at, keep, WIDTH, post_eps, POST_PLUS_ONE)
        x += scale * delta
        tl.store(residual_ptr + row * WIDTH + at, x, mask=keep)
    if NORM:
        x = normed(x, norm_ptr, at, keep, WIDTH, norm_eps, NORM_PLUS_ONE)
    place = row * WIDTH + at if TILES == 0 else ordered(row, at, TILES, DENSE)
    tl.store(out_ptr + place, x.to(out_ptr.dtype.element_ty), mask=keep)


def add_norm(
    residual: torch.Tensor,
    delta: torch.Tensor | None,
    norm: RMSNorm | None,
    *,
    post: RMSNorm | None = None,
    scale: float = 1.0,
    dtype: torch.dtype,
    starts_early: bool = False,
    order: Order | None = None,
    fresh: bool = False,
) -> torch.Tensor:
    """`residual += scale * post(delta)`, in place; returns `norm(residual)` in `dtype`, or the residual itself in it.

    residual: `[T, H]` float32, contiguous. delta: `[T, H]` of any float dtype, or float32 partial sums `[S, T, H]`,
    which are added up first; its last axis contiguous. fresh: the residual holds nothing yet, and begins as the delta.
    order: how the result `[8 * tiles, H]` lies, H then a multiple of 64; None: row by row, `[T, H]`. All arithmetic is
    in float32.
    """
    tokens, width = residual.shape
    out = torch.empty((8 * order.tiles if order else tokens, width), device=residual.device, dtype=dtype)
    given = residual if delta is None else delta
    parts, part_stride = (given.shape[0], given.stride(0)) if given.dim() == 3 else (1, 0)
    block = triton.next_power_of_2(width)
    _add_norm[(tokens,)](
        residual,
        given,
        out,
        out if post is None else post.weight,
        out if norm is None else norm.weight,
        part_stride,
        given.stride(-2),
        scale,
        0.0 if post is None else post.eps,
        0.0 if norm is None else norm.eps,
        PARTS=parts,
        WIDTH=width,
        BLOCK=block,
        DELTA=delta is not None,
        FRESH=fresh,
        POST=post is not None,
        NORM=norm is not None,
        POST_PLUS_ONE=post is not None and post.plus_one,
        NORM_PLUS_ONE=norm is not None and norm.plus_one,
        TILES=order.tiles if order else 0,
        DENSE=order is not None and order.dense,
        num_warps=min(max(block // 128, 1), 32),
        **early(residual.device, starts_early),
    )
    return out
