"""Owns decode attention by our kernel for blocks that compute all else by themselves; must not know families.

Nothing is copied out of pages and no row is widened to another's length. A launch costs the host more than one of
torch's calls does, so that this is for rows that share it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from shoal.blocks.kernels.decode import choose_splits, decode_attention
from shoal.blocks.kernels.softmax import COUNTERS
from shoal.blocks.kv import PAGE_TOKENS

if TYPE_CHECKING:
    from shoal.blocks.attention import Rules
    from shoal.blocks.batch import Batch
    from shoal.blocks.kv import BlockKV

MOST_WIDTH = 256  # of a head
# Each number of programs that share a row's keys is a kernel of its own, which takes seconds to compile: few of them,
# and tables whose width is of one kind.
_SPLITS = (1, 4, 16)
_TABLE_STEP = 16

Tables = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def takes(query: torch.Tensor, kv: BlockKV) -> bool:
    """Whether the kernel knows heads of this width: the same for keys and values, and not too wide."""
    return query.shape[-1] == kv.keys.shape[-1] == kv.values.shape[-1] <= MOST_WIDTH


def attend_together(
    query: torch.Tensor, kv: BlockKV, batch: Batch, rest: tuple[int | None, Rules, torch.Tensor]
) -> None:
    """Rows of one token each, of `query [1, heads, T, width]`, into their places in `out [1, T, heads, width]`."""
    window, rules, out = rest
    tokens, table, ends = batch.once("tables", _tables)
    heads, width = query.shape[1], query.shape[3]
    queries = query[0].transpose(0, 1).index_select(0, tokens)
    for first in range(0, len(tokens), most := COUNTERS // kv.keys.shape[1]):
        part = slice(first, first + most)
        seen = decode_attention(
            queries[part], kv, table[part], ends[part], splits=_splits(len(tokens[part]), kv), scale=rules.scale,
            window=window, softcap=rules.softcap, sinks=rules.sinks,
        )  # fmt: skip
        out[0].index_copy_(0, tokens[part], seen.view(-1, heads, width))


def _splits(rows: int, kv: BlockKV) -> int:
    wanted = choose_splits(rows, kv.keys.shape[1], kv.keys.device)
    return max(splits for splits in _SPLITS if splits <= wanted)


def _tables(batch: Batch) -> Tables:
    """Of rows of one token: which of the batch they are, their pages `[B, pages]` and ends `[B]`, int32."""
    firsts = np.cumsum([0, *(row.count for row in batch.rows)])
    ones = [index for index, row in enumerate(batch.rows) if row.count == 1]
    pages = [batch.rows[index].pages[: -(-batch.rows[index].end // PAGE_TOKENS)] for index in ones]
    table = np.zeros((len(ones), -(-max(map(len, pages)) // _TABLE_STEP) * _TABLE_STEP), dtype=np.int32)
    for at, held in zip(table, pages, strict=True):
        at[: len(held)] = held
    ends = np.array([batch.rows[index].end for index in ones], dtype=np.int32)
    tokens, table_, ends_ = (torch.from_numpy(one).to(batch.device) for one in (firsts[ones], table, ends))
    return tokens, table_, ends_
