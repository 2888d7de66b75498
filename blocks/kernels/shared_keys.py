"""Owns putting together what programs found that shared a tile's keys; must not know queries or pages' contents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl
from shoal.blocks.kernels.early import wait_for_inputs
from shoal.blocks.kernels.softmax import HIDDEN, ended
from shoal.blocks.kernels.tiles import FIELDS
from shoal.blocks.kv import PAGE_TOKENS

if TYPE_CHECKING:
    import torch
    from shoal.blocks.kernels.tiles import PrefillTiles

_PAGE = tl.constexpr(PAGE_TOKENS)
_FIELDS = tl.constexpr(FIELDS)
MOST_PARTS = 32  # of a row of a tile: all are loaded at once
_ROWS = 2  # of a tile, for one program


@triton.jit
def shares(first_position, count, window, splits, BLOCK_N: tl.constexpr, WINDOWED: tl.constexpr):
    """The first key that a tile sees, the keys of each program's share, and how many programs get one."""
    start = 0
    if WINDOWED:
        start = tl.maximum(first_position + 1 - window, 0) // _PAGE * _PAGE
    blocks = tl.cdiv(first_position + count - start, BLOCK_N)
    per_split = tl.cdiv(blocks, splits)
    return start, per_split * BLOCK_N, tl.cdiv(blocks, per_split)


@triton.jit
def _put_together(
    table_ptr,
    parts_ptr,
    sums_ptr,
    sinks_ptr,
    out_ptr,
    splits,
    window,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    WINDOWED: tl.constexpr,
    SINKS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """ROWS rows of a tile, of all programs that shared its keys."""
    wait_for_inputs(EARLY)
    kv_head, tile, portion = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_token = tl.load(table_ptr + tile * _FIELDS)
    count = tl.load(table_ptr + tile * _FIELDS + 1)
    first_position = tl.load(table_ptr + tile * _FIELDS + 2)
    stacked, column = portion * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_DIM)
    token, head = stacked // GROUP, kv_head * GROUP + stacked % GROUP
    if portion * ROWS < count * GROUP:
        _, _, at_work = shares(first_position, count, window, splits, BLOCK_N, WINDOWED)
        first = (tile * KV_HEADS + kv_head) * splits
        part = tl.arange(0, PARTS)
        at, there = (first + part)[:, None], (part < at_work)[:, None] & (stacked < BLOCK_M)[None, :]
        peaks = tl.load(sums_ptr + at * (2 * BLOCK_M) + stacked[None, :], mask=there, other=HIDDEN)
        totals = tl.load(sums_ptr + at * (2 * BLOCK_M) + BLOCK_M + stacked[None, :], mask=there, other=0.0)
        rows = at.to(tl.int64) * (BLOCK_M * DIM) + stacked[None, :] * DIM
        outs = tl.load(
            parts_ptr + rows[:, :, None] + column[None, None, :],
            mask=there[:, :, None] & (column < DIM)[None, None, :], other=0.0,
        )  # fmt: skip
        peak = tl.max(peaks, 0)
        weights = tl.exp2(peaks - peak[None, :])
        total = tl.sum(totals * weights, 0)
        out = tl.sum(outs * weights[:, :, None], 0)
        out = ended(peak, total, out, sinks_ptr, head, SINKS)
        keep = (token < count)[:, None] & (column < DIM)[None, :]
        row = (first_token + token).to(tl.int64) * (KV_HEADS * GROUP) + head
        out_at = out_ptr + row[:, None] * DIM + column[None, :]
        tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=keep)


def put_together(
    out: torch.Tensor,
    parts: torch.Tensor,
    sums: torch.Tensor,
    tiles: PrefillTiles,
    splits: int,
    *,
    keys: int,
    window: int | None,
    sinks: torch.Tensor | None,
    kv_heads: int,
    launch: dict[str, Any],
) -> None:
    """The running softmax of each of `tiles` into `out [T, heads * D]`, from what up to MOST_PARTS programs left of it.

    parts: `[tiles * kv_heads * splits, stacked queries, D]`, sums as `softmax.leave` writes them. keys: those that a
    program takes at once. launch: options of `early`.
    """
    stacked, dim = parts.shape[1:]
    _put_together[(kv_heads, tiles.count, stacked // _ROWS)](
        tiles.table,
        parts,
        sums,
        tiles.table if sinks is None else sinks,
        out,
        splits,
        window or 0,
        KV_HEADS=kv_heads,
        GROUP=tiles.group,
        BLOCK_M=stacked,
        BLOCK_N=keys,
        ROWS=_ROWS,
        PARTS=MOST_PARTS,
        DIM=dim,
        BLOCK_DIM=triton.next_power_of_2(dim),
        WINDOWED=window is not None,
        SINKS=sinks is not None,
        num_warps=4,
        **launch,
    )
