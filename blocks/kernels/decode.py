"""Owns decode attention: one query token a row against its pages, split over programs; must not know leases or spans.

A program takes one row, the query heads that share one KV head, and its share of the row's keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from shoal.blocks.kernels.early import early, wait_for_inputs
from shoal.blocks.kernels.rope import strides_of
from shoal.blocks.kernels.softmax import (
    COUNTERS,
    HIDDEN,
    counters,
    ended,
    folded,
    is_last,
    leave,
    multiprocessors,
    rows_at,
    scores_of,
    slots_at,
    together,
    weight_type,
)
from shoal.blocks.kv import PAGE_TOKENS

if TYPE_CHECKING:
    from shoal.blocks.kv import BlockKV

MAX_SPLITS = 32
_PAGE = tl.constexpr(PAGE_TOKENS)


@triton.jit
def _decode(
    q_ptr,
    keys_ptr,
    values_ptr,
    key_scale_ptr,
    value_scale_ptr,
    table_ptr,
    ends_ptr,
    sinks_ptr,
    out_ptr,
    parts_ptr,
    sums_ptr,
    counters_ptr,
    slot_stride,
    head_stride,
    slot_scale_stride,
    head_scale_stride,
    q_stride,
    table_stride,
    window,
    scale,
    softcap,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    UNROLL: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    SCALED: tl.constexpr,
    WEIGHT: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_inputs(EARLY)
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads, splits = tl.num_programs(1), tl.num_programs(2)
    end = tl.load(ends_ptr + row)
    member, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_DIM)
    head = kv_head * GROUP + tl.minimum(member, GROUP - 1)
    first = 0
    seen_from = 0
    if WINDOWED:
        seen_from = tl.maximum(end - window, 0)
        first = seen_from // _PAGE * _PAGE
    # Each program takes as many blocks of keys as the others, so that some may get none.
    blocks = tl.cdiv(end - first, BLOCK_N)
    per_split = tl.cdiv(blocks, splits)
    at_work = tl.cdiv(blocks, tl.maximum(per_split, 1))
    if at_work == 0:
        if split == 0:
            zeros = tl.zeros([BLOCK_M, BLOCK_DIM], tl.float32)
            _write(zeros, out_ptr, (row * kv_heads + kv_head) * GROUP, member, column, GROUP, DIM)
    elif split < at_work:
        q_at = q_ptr + row.to(tl.int64) * q_stride + head[:, None] * DIM + column[None, :]
        q = tl.load(q_at, mask=(member < GROUP)[:, None] & (column < DIM)[None, :], other=0.0)
        pages_ptr = table_ptr + row.to(tl.int64) * table_stride
        keys = keys_ptr + kv_head.to(tl.int64) * head_stride
        values = values_ptr + kv_head.to(tl.int64) * head_stride
        scales = kv_head.to(tl.int64) * head_scale_stride
        peak = tl.full([BLOCK_M], HIDDEN, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        out = tl.zeros([BLOCK_M, BLOCK_DIM], tl.float32)
        start = first + split * per_split * BLOCK_N
        stop = tl.minimum(start + per_split * BLOCK_N, end)
        for block in tl.range(start, stop, BLOCK_N, num_stages=STAGES):
            position = block + tl.arange(0, BLOCK_N)
            seen = position < end
            if WINDOWED:
                seen = seen & (position >= seen_from)
            slots = slots_at(pages_ptr, position, seen, _PAGE)
            k = rows_at(keys, slots, slot_stride, column, seen, True, DIM, BLOCK_DIM)
            v = rows_at(values, slots, slot_stride, column, seen, True, DIM, BLOCK_DIM)
            k_scale, v_scale = 1.0, 1.0
            if SCALED:
                k_scale = tl.load(key_scale_ptr + scales + slots * slot_scale_stride, mask=seen, other=0.0)
                v_scale = tl.load(value_scale_ptr + scales + slots * slot_scale_stride, mask=seen, other=0.0)
                k_scale, v_scale = k_scale.to(tl.float32), v_scale.to(tl.float32)
            scores = scores_of(q, k, k_scale, scale, softcap, SCALED, CAPPED)
            scores = tl.where(seen[None, :], scores, HIDDEN)
            peak, total, out = folded(scores, v, v_scale, peak, total, out, WEIGHT, SCALED)
        if at_work > 1:
            parts = (row * kv_heads + kv_head) * splits
            leave(peak, total, out, parts_ptr, sums_ptr, parts + split, member, column, GROUP, DIM)
            if is_last(counters_ptr + row * kv_heads + kv_head, at_work):
                few = tl.arange(0, BLOCK_GROUP)
                real = tl.minimum(few, GROUP - 1)
                peaks, totals, outs = together(
                    parts_ptr, sums_ptr, parts, at_work, real, column, GROUP, DIM, BLOCK_GROUP, BLOCK_DIM, UNROLL
                )
                outs = ended(peaks, totals, outs, sinks_ptr, kv_head * GROUP + real, SINKS)
                _write(outs, out_ptr, (row * kv_heads + kv_head) * GROUP, few, column, GROUP, DIM)
        else:
            out = ended(peak, total, out, sinks_ptr, head, SINKS)
            _write(out, out_ptr, (row * kv_heads + kv_head) * GROUP, member, column, GROUP, DIM)


@triton.jit
def _write(x, out_ptr, first, member, column, GROUP: tl.constexpr, DIM: tl.constexpr):
    at = out_ptr + first.to(tl.int64) * DIM + member[:, None] * DIM + column[None, :]
    tl.store(at, x.to(out_ptr.dtype.element_ty), mask=(member < GROUP)[:, None] & (column < DIM)[None, :])


def decode_attention(
    q: torch.Tensor,
    kv: BlockKV,
    table: torch.Tensor,
    ends: torch.Tensor,
    *,
    splits: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    starts_early: bool = False,
) -> torch.Tensor:
    """Each row's one query against the positions that it sees: `q [B, heads, D]` to `[B, heads * D]`.

    table: `[B, max_pages]` int32, a row's pages in order; ends: `[B]` int32, tokens in the KV with the new one, 0 for a
    row of padding, which gives zeros. window: a token sees itself and `window - 1` before it. splits: programs that
    share a row's keys, from `choose_splits`. The grid depends on shapes alone, so that a CUDA graph may hold the call;
    the first call on a device must come before any capture, and calls must not overlap on several streams.
    """
    batch, heads, dim = q.shape
    kv_heads = kv.keys.shape[1]
    group = heads // kv_heads
    if batch * kv_heads > COUNTERS:
        raise ValueError(f"decode attention takes up to {COUNTERS} rows times KV heads, not {batch} times {kv_heads}")
    out = torch.empty((batch, heads * dim), device=q.device, dtype=q.dtype)
    parts = torch.empty((batch * splits, heads, dim) if splits > 1 else (1,), device=q.device, dtype=torch.float32)
    sums = torch.empty((batch * splits, 2, heads) if splits > 1 else (1,), device=q.device, dtype=torch.float32)
    scaled = kv.key_scale is not None
    keys, stages = _shape(q.dtype, dim, splits, scaled=scaled)
    _decode[(batch, kv_heads, splits)](
        q,
        kv.keys,
        kv.values,
        kv.key_scale if kv.key_scale is not None else ends,
        kv.value_scale if kv.value_scale is not None else ends,
        table,
        ends,
        ends if sinks is None else sinks,
        out,
        parts,
        sums,
        counters(q.device),
        *strides_of(kv),
        q.stride(0),
        table.stride(0),
        window or 0,
        scale,
        softcap or 1.0,
        GROUP=group,
        BLOCK_M=max(16, triton.next_power_of_2(group)),
        BLOCK_N=keys,
        DIM=dim,
        BLOCK_DIM=triton.next_power_of_2(dim),
        BLOCK_GROUP=triton.next_power_of_2(group),
        UNROLL=min(triton.next_power_of_2(splits), 16 if group * dim <= 512 else 8 if group * dim <= 1024 else 2),
        WINDOWED=window is not None,
        CAPPED=softcap is not None,
        SINKS=sinks is not None,
        SCALED=scaled,
        WEIGHT=weight_type(q.dtype, scaled=scaled),
        STAGES=stages,
        num_warps=4,
        **early(q.device, starts_early),
    )
    return out


def _shape(dtype: torch.dtype, dim: int, splits: int, *, scaled: bool) -> tuple[int, int]:
    """Keys per step and stages of loading, as they measured best on an H100: short steps where programs have few."""
    if dtype == torch.float32:
        return 32, 2
    if dim > 128:
        return 64, 2
    return (64, 3) if scaled or splits > 8 else (128, 2)


def choose_splits(batch: int, kv_heads: int, device: torch.device) -> int:
    """How many programs should share a row's keys: enough to give each multiprocessor two, if there were none else."""
    wanted = 2 * multiprocessors(device) // (batch * kv_heads)
    return min(max(wanted, 1), MAX_SPLITS)
