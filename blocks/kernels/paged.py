"""Owns attention by our kernels for blocks that compute all else by themselves; must not know families or projections.

Nothing is copied out of pages and no row is widened to another's length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from shoal.blocks.kernels.decode import choose_splits, decode_attention
from shoal.blocks.kernels.prefill import prefill_attention
from shoal.blocks.kernels.softmax import COUNTERS
from shoal.blocks.kernels.tiles import prefill_tiles
from shoal.blocks.kv import PAGE_TOKENS

if TYPE_CHECKING:
    from shoal.blocks.attention import Rules
    from shoal.blocks.batch import Batch, Row
    from shoal.blocks.kernels.tiles import PrefillTiles
    from shoal.blocks.kv import BlockKV

MOST_WIDTH = 256  # of a head


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one kind: their tokens' indices `[n]` in the batch (None: they are all of it), in order."""

    rows: tuple[Row, ...]
    tokens: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _Kinds:
    """Rows of one token with their page table and ends, and the others."""

    ones: _Rows
    table: torch.Tensor
    ends: torch.Tensor
    chunks: _Rows


def takes(query: torch.Tensor, kv: BlockKV) -> bool:
    """Whether the kernels know heads of this width: the same for keys and values, and not too wide."""
    return query.shape[-1] == kv.keys.shape[-1] == kv.values.shape[-1] <= MOST_WIDTH


def attend(query: torch.Tensor, kv: BlockKV, batch: Batch, window: int | None, rules: Rules) -> torch.Tensor:
    """Each row's tokens against that row's pages: `[1, heads, T, width]` to `[1, T, heads, width]`."""
    queries = query[0].transpose(0, 1).contiguous()
    given = {"scale": rules.scale, "window": window, "softcap": rules.softcap, "sinks": rules.sinks}
    kinds = batch.once("kinds", _kinds)
    if not kinds.chunks.rows:
        return _decode(queries, kv, kinds, given).view(1, *queries.shape)
    group = queries.shape[1] // kv.keys.shape[1]
    tiles = batch.once(("tiles", group), lambda held: prefill_tiles(kinds.chunks.rows, group, held.device))
    if kinds.ones.tokens is None or kinds.chunks.tokens is None:
        return _prefill(queries, kv, tiles, given).view(1, *queries.shape)
    out = torch.empty_like(queries)
    flat = out.view(len(out), -1)
    flat.index_copy_(0, kinds.ones.tokens, _decode(queries.index_select(0, kinds.ones.tokens), kv, kinds, given))
    flat.index_copy_(0, kinds.chunks.tokens, _prefill(queries.index_select(0, kinds.chunks.tokens), kv, tiles, given))
    return out[None]


def _decode(queries: torch.Tensor, kv: BlockKV, kinds: _Kinds, given: dict[str, Any]) -> torch.Tensor:
    kv_heads = kv.keys.shape[1]
    most = COUNTERS // kv_heads
    parts = [
        decode_attention(one, kv, table, ends, splits=choose_splits(len(one), kv_heads, one.device), **given)
        for one, table, ends in zip(queries.split(most), kinds.table.split(most), kinds.ends.split(most), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _prefill(queries: torch.Tensor, kv: BlockKV, tiles: PrefillTiles, given: dict[str, Any]) -> torch.Tensor:
    return prefill_attention(queries, kv, tiles, **given)


def _kinds(batch: Batch) -> _Kinds:
    firsts = np.cumsum([0, *(row.count for row in batch.rows)])
    ones = [i for i, row in enumerate(batch.rows) if row.count == 1]
    chunks = [i for i, row in enumerate(batch.rows) if row.count > 1]
    rows = tuple(batch.rows[i] for i in ones)
    width = max((-(-row.end // PAGE_TOKENS) for row in rows), default=0)
    table = np.zeros((len(rows), width), dtype=np.int32)
    for at, row in zip(table, rows, strict=True):
        held = row.pages[: -(-row.end // PAGE_TOKENS)]
        at[: len(held)] = held
    both = bool(ones and chunks)
    return _Kinds(
        ones=_Rows(rows, _on(batch.device, firsts[ones]) if both else None),
        table=_on(batch.device, table),
        ends=_on(batch.device, np.array([row.end for row in rows], dtype=np.int32)),
        chunks=_Rows(
            tuple(batch.rows[i] for i in chunks),
            _on(batch.device, np.concatenate([np.arange(firsts[i], firsts[i + 1]) for i in chunks])) if both else None,
        ),
    )


def _on(device: torch.device, numbers: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(numbers).to(device)
