"""Owns what decode and prefill attention share: a running softmax over keys, split over programs; must not know rows.

The running softmax is FlashAttention's (Dao et al., 2022, arXiv:2205.14135). Scores are kept in units of log2, as the
hardware's exponential is of base 2. Where the keys of a tile of queries are shared out to several programs, the last of
them that ends puts their results together (Flash-Decoding, Dao et al., 2023). Parts are added in their order, whichever
program is last.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from shoal.blocks.kernels.activation import tanh

COUNTERS = 1 << 16
LOG2_E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-1e30)  # a score that weighs nothing; finite, so that a block without any other makes no NaN


@triton.jit
def slots_at(pages_ptr, positions, keep, PAGE: tl.constexpr):
    """The slots of a sequence's positions; what its page table holds beyond them is not read."""
    page = tl.load(pages_ptr + positions // PAGE, mask=keep, other=0)
    return page.to(tl.int64) * PAGE + positions % PAGE


@triton.jit
def rows_at(base, slots, slot_stride, column, keep, MASKED: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """`[slots, BLOCK_DIM]` numbers of a pool, zero where `keep` is false and past DIM."""
    at = base + slots[:, None] * slot_stride + column[None, :]
    if DIM != BLOCK_DIM:
        return tl.load(at, mask=keep[:, None] & (column < DIM)[None, :], other=0.0)
    if MASKED:
        return tl.load(at, mask=keep[:, None], other=0.0)
    return tl.load(at)


@triton.jit
def scores_of(q, k, k_scale, scale, softcap, SCALED: tl.constexpr, CAPPED: tl.constexpr):
    """`q [M, D]` against `k [N, D]`, in units of log2. `softcap` is Gemma 2's (arXiv:2408.00118)."""
    scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee") * scale
    if SCALED:
        scores *= k_scale[None, :]
    if CAPPED:
        scores = softcap * tanh(scores / softcap)
    return scores * LOG2_E


@triton.jit
def folded(scores, v, v_scale, peak, total, out, WEIGHT: tl.constexpr, SCALED: tl.constexpr):
    """The softmax's running largest score, sum and output with one block more; WEIGHT: what the weights are kept in."""
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    weights = tl.exp2(scores - new_peak[:, None])
    shrink = tl.exp2(peak - new_peak)
    total = total * shrink + tl.sum(weights, 1)
    if SCALED:
        weights *= v_scale[None, :]
        v = v.to(tl.float32)
    out = tl.dot(weights.to(WEIGHT), v.to(WEIGHT), out * shrink[:, None], input_precision="ieee")
    return new_peak, total, out


@triton.jit
def leave(peak, total, out, parts_ptr, sums_ptr, at, row, column, ROWS: tl.constexpr, DIM: tl.constexpr):
    """Write one program's part, number `at` of all: parts `[n, ROWS, DIM]` and sums `[n, 2, ROWS]`, float32."""
    keep = row < ROWS
    target = parts_ptr + at.to(tl.int64) * (ROWS * DIM) + row[:, None] * DIM + column[None, :]
    tl.store(target, out, mask=keep[:, None] & (column < DIM)[None, :])
    tl.store(sums_ptr + at * (2 * ROWS) + row, peak, mask=keep)
    tl.store(sums_ptr + at * (2 * ROWS) + ROWS + row, total, mask=keep)


@triton.jit
def is_last(counter_ptr, at_work):
    """Whether all other programs that count here have left their parts; the counter is then zero again."""
    # The stores of all threads come before the count of one, and the count before what the last one reads.
    tl.debug_barrier()
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel") == at_work - 1
    if last:
        tl.store(counter_ptr, 0)
    return last


@triton.jit
def together(
    parts_ptr,
    sums_ptr,
    first,
    at_work,
    row,
    column,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The running softmax over parts `first` to `first + at_work`, as `leave` wrote them."""
    peak = tl.full([BLOCK_ROWS], HIDDEN, tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    out = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    for step in range(0, at_work, UNROLL):
        for i in tl.static_range(UNROLL):
            at = first + step + i
            keep = (row < ROWS) & (step + i < at_work)
            # Past the nearest cache, which may hold what an earlier call left there.
            own_peak = tl.load(sums_ptr + at * (2 * ROWS) + row, mask=keep, other=HIDDEN, cache_modifier=".cg")
            own_total = tl.load(sums_ptr + at * (2 * ROWS) + ROWS + row, mask=keep, other=0.0, cache_modifier=".cg")
            source = parts_ptr + at.to(tl.int64) * (ROWS * DIM) + row[:, None] * DIM + column[None, :]
            part = tl.load(source, mask=keep[:, None] & (column < DIM)[None, :], other=0.0, cache_modifier=".cg")
            new_peak = tl.maximum(peak, own_peak)
            shrink, weight = tl.exp2(peak - new_peak), tl.exp2(own_peak - new_peak)
            total = total * shrink + own_total * weight
            out = out * shrink[:, None] + part * weight[:, None]
            peak = new_peak
    return peak, total, out


@triton.jit
def ended(peak, total, out, sinks_ptr, head, SINKS: tl.constexpr):
    """The softmax's end: a sink is one logit more, which takes weight and gives no value (gpt-oss)."""
    if SINKS:
        sink = tl.load(sinks_ptr + head).to(tl.float32) * LOG2_E
        new_peak = tl.maximum(peak, sink)
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.exp2(sink - new_peak)
        out *= shrink[:, None]
    return out / total[:, None]


def weight_type(dtype: torch.dtype, *, scaled: bool) -> tl.dtype:
    """What softmax weights are multiplied with values in; times an int8's scale they may be too small for float16."""
    if dtype == torch.float32:
        return tl.float32
    return tl.bfloat16 if scaled or dtype == torch.bfloat16 else tl.float16


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run at once at least; a small number where Triton interprets them on a CPU."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 16


@functools.cache
def counters(device: torch.device) -> torch.Tensor:
    """COUNTERS counts of ended programs, for `is_last`: every call finds and leaves them at zero."""
    return torch.zeros(COUNTERS, device=device, dtype=torch.int32)
