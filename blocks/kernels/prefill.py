"""Owns prefill attention: chunks of rows of any length against their pages; must not know leases or spans.

Queries of one KV head's group of heads are stacked in one tile, so that short chunks of models with grouped queries
still fill it. Where there are few tiles, several programs share one tile's keys, and a second kernel puts together what
they leave: one program would take as long for a whole tile of it as they for the keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from shoal.blocks.kernels.early import early, wait_for_inputs
from shoal.blocks.kernels.fit import launch_what_fits
from shoal.blocks.kernels.rope import strides_of
from shoal.blocks.kernels.shared_keys import MOST_PARTS, put_together, shares
from shoal.blocks.kernels.softmax import (
    HIDDEN,
    ended,
    folded,
    leave,
    multiprocessors,
    rows_at,
    scores_of,
    slots_at,
    weight_type,
)
from shoal.blocks.kernels.tiles import FIELDS, PrefillTiles, prefill_tiles
from shoal.blocks.kv import PAGE_TOKENS

if TYPE_CHECKING:
    from shoal.blocks.kv import BlockKV

__all__ = ["PrefillTiles", "prefill_attention", "prefill_tiles"]

_PAGE = tl.constexpr(PAGE_TOKENS)
_SHARE = 128  # keys that are worth a program of their own
_SMALL = 64  # queries stacked in a tile
_FIELDS = tl.constexpr(FIELDS)


@triton.jit
def _prefill(
    q_ptr,
    keys_ptr,
    values_ptr,
    key_scale_ptr,
    value_scale_ptr,
    table_ptr,
    sinks_ptr,
    out_ptr,
    parts_ptr,
    sums_ptr,
    slot_stride,
    head_stride,
    slot_scale_stride,
    head_scale_stride,
    q_stride,
    window,
    scale,
    softcap,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    SCALED: tl.constexpr,
    WEIGHT: tl.constexpr,
    SHARED: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_inputs(EARLY)
    kv_head, tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    splits = tl.num_programs(2)
    first_token = tl.load(table_ptr + tile * _FIELDS)
    count = tl.load(table_ptr + tile * _FIELDS + 1)
    first_position = tl.load(table_ptr + tile * _FIELDS + 2)
    pages_ptr = table_ptr + tl.load(table_ptr + tile * _FIELDS + 3)
    stacked, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_DIM)
    token = stacked // GROUP
    head = kv_head * GROUP + stacked % GROUP
    keep = (token < count)[:, None] & (column < DIM)[None, :]
    query_row = (first_token + token).to(tl.int64)
    q_at = q_ptr + query_row[:, None] * q_stride + head[:, None] * DIM + column[None, :]
    q = tl.load(q_at, mask=keep, other=0.0)
    own = first_position + token
    start, share, at_work = shares(first_position, count, window, splits, BLOCK_N, WINDOWED)
    start += split * share
    end = tl.minimum(start + share, first_position + count)
    seen_by_all = start
    if not WINDOWED:
        seen_by_all = tl.minimum((first_position + 1) // BLOCK_N * BLOCK_N, end)
    keys = keys_ptr + kv_head.to(tl.int64) * head_stride
    values = values_ptr + kv_head.to(tl.int64) * head_stride
    key_scales = key_scale_ptr + kv_head.to(tl.int64) * head_scale_stride
    value_scales = value_scale_ptr + kv_head.to(tl.int64) * head_scale_stride
    peak = tl.full([BLOCK_M], HIDDEN, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    out = tl.zeros([BLOCK_M, BLOCK_DIM], tl.float32)
    for block in tl.range(start, seen_by_all, BLOCK_N, num_stages=STAGES):
        peak, total, out = _block(
            q, own, end, block, peak, total, out, keys, values, key_scales, value_scales, pages_ptr, column,
            slot_stride, slot_scale_stride, window, scale, softcap,
            False, WINDOWED, BLOCK_N, DIM, BLOCK_DIM, CAPPED, SCALED, WEIGHT,
        )  # fmt: skip
    for block in tl.range(tl.maximum(seen_by_all, start), end, BLOCK_N, num_stages=STAGES):
        peak, total, out = _block(
            q, own, end, block, peak, total, out, keys, values, key_scales, value_scales, pages_ptr, column,
            slot_stride, slot_scale_stride, window, scale, softcap,
            True, WINDOWED, BLOCK_N, DIM, BLOCK_DIM, CAPPED, SCALED, WEIGHT,
        )  # fmt: skip
    if SHARED:
        if split < at_work:
            part = (tile * KV_HEADS + kv_head) * splits + split
            leave(peak, total, out, parts_ptr, sums_ptr, part, stacked, column, BLOCK_M, DIM)
    else:
        out = ended(peak, total, out, sinks_ptr, head, SINKS)
        out_at = out_ptr + (query_row * (KV_HEADS * GROUP) + head)[:, None] * DIM + column[None, :]
        tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit
def _block(
    q,
    own,
    end,
    block,
    peak,
    total,
    out,
    keys,
    values,
    key_scales,
    value_scales,
    pages_ptr,
    column,
    slot_stride,
    slot_scale_stride,
    window,
    scale,
    softcap,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    CAPPED: tl.constexpr,
    SCALED: tl.constexpr,
    WEIGHT: tl.constexpr,
):
    """Keys from position `block` on; MASKED: not every query sees all of them."""
    position = block + tl.arange(0, BLOCK_N)
    there = position < end
    slots = slots_at(pages_ptr, position, there, _PAGE)
    k = rows_at(keys, slots, slot_stride, column, there, MASKED, DIM, BLOCK_DIM)
    v = rows_at(values, slots, slot_stride, column, there, MASKED, DIM, BLOCK_DIM)
    k_scale, v_scale = 1.0, 1.0
    if SCALED:
        k_scale = tl.load(key_scales + slots * slot_scale_stride, mask=there, other=0.0).to(tl.float32)
        v_scale = tl.load(value_scales + slots * slot_scale_stride, mask=there, other=0.0).to(tl.float32)
    scores = scores_of(q, k, k_scale, scale, softcap, SCALED, CAPPED)
    if MASKED:
        seen = position[None, :] <= own[:, None]
        if WINDOWED:
            seen = seen & (position[None, :] > own[:, None] - window)
        scores = tl.where(seen, scores, HIDDEN)
    return folded(scores, v, v_scale, peak, total, out, WEIGHT, SCALED)


def prefill_attention(
    q: torch.Tensor,
    kv: BlockKV,
    tiles: PrefillTiles,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    starts_early: bool = False,
) -> torch.Tensor:
    """Every token of a ragged batch against its row's pages up to itself: `q [T, heads, D]` to `[T, heads * D]`.

    The new keys and values are in `kv` already. window: a token sees itself and `window - 1` before it.
    """
    tokens, heads, dim = q.shape
    kv_heads = kv.keys.shape[1]
    if heads != kv_heads * tiles.group:
        raise ValueError(f"tiles for groups of {tiles.group} heads do not fit {heads} heads on {kv_heads}")
    out = torch.empty((tokens, heads * dim), device=q.device, dtype=q.dtype)
    stacked = max(16, triton.next_power_of_2(tiles.tokens * tiles.group))
    splits = _splits(tiles, kv_heads, window, stacked, q.device)
    shared = (tiles.count * kv_heads * splits, stacked) if splits > 1 else (1, 1)
    parts = torch.empty((*shared, dim), device=q.device, dtype=torch.float32)
    sums = torch.empty((*shared, 2), device=q.device, dtype=torch.float32)
    scaled = kv.key_scale is not None
    held_back = early(q.device, starts_early)

    def launch(shape: tuple[int, int, int]) -> None:
        block, stages, warps = shape
        _prefill[(kv_heads, tiles.count, splits)](
            q,
            kv.keys,
            kv.values,
            kv.key_scale if kv.key_scale is not None else tiles.table,
            kv.value_scale if kv.value_scale is not None else tiles.table,
            tiles.table,
            tiles.table if sinks is None else sinks,
            out,
            parts,
            sums,
            *strides_of(kv),
            q.stride(0),
            window or 0,
            scale,
            softcap or 1.0,
            KV_HEADS=kv_heads,
            GROUP=tiles.group,
            BLOCK_M=stacked,
            BLOCK_N=block,
            DIM=dim,
            BLOCK_DIM=triton.next_power_of_2(dim),
            WINDOWED=window is not None,
            CAPPED=softcap is not None,
            SINKS=sinks is not None,
            SCALED=scaled,
            WEIGHT=weight_type(q.dtype, scaled=scaled),
            SHARED=splits > 1,
            STAGES=stages,
            num_warps=warps,
            **held_back,
        )

    shapes = _shapes(q.dtype, dim, stacked, splits)
    block, *_ = launch_what_fits((q.device, shapes, kv.keys.dtype, dim, stacked, splits > 1), shapes, launch)
    if splits > 1:
        put_together(
            out, parts, sums, tiles, splits, keys=block, window=window, sinks=sinks, kv_heads=kv_heads,
            launch=held_back,
        )  # fmt: skip
    return out


def _shapes(dtype: torch.dtype, dim: int, stacked: int, splits: int) -> tuple[tuple[int, int, int], ...]:
    """Keys per step, stages of loading, and warps: first as they measured best on an H100, then for GPUs that have less
    shared memory. Four warps let two programs share a multiprocessor; other cases have too few registers for that, or
    gain nothing by it."""
    warps = 4 if 64 < dim <= 128 and splits == 1 else 8
    if dtype == torch.float32:
        return (32, 2, warps), (16, 2, warps), (16, 1, warps)
    if splits > 1 and stacked <= _SMALL and dim <= 128:
        return (64, 2, 4), (32, 2, 4), (16, 2, 4)
    return (64, 2 if dim > 128 else 3, warps), (32, 2, warps), (16, 2, warps)


def _splits(tiles: PrefillTiles, kv_heads: int, window: int | None, stacked: int, device: torch.device) -> int:
    """Programs that share a tile's keys: more than one where a short chunk's tiles leave multiprocessors idle, of which
    each has room for two programs with a small tile."""
    at_once = multiprocessors(device) * (2 if stacked <= _SMALL else 1)
    keys = tiles.longest if window is None else min(tiles.longest, window + tiles.tokens)
    return max(min(at_once // (tiles.count * kv_heads), keys // _SHARE, MOST_PARTS), 1)
