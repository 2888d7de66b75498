"""Owns the tiles that prefill attention works in: a few integers each, worked out on the host and copied at once.

Must not know kernels: numbers alone, no Triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from shoal.blocks.kv import PAGE_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.blocks.batch import Row

Ints = np.ndarray[Any, np.dtype[np.int32]]

FIELDS = 4
_ROWS, _FEW_ROWS = 128, 64  # queries stacked in one tile: else, and where there are no more


@dataclass(frozen=True)
class PrefillTiles:
    """Tiles of `tokens` query tokens each, for blocks whose `group` query heads share a KV head.

    table: int32 on the device: FIELDS for each tile, which are the index of its first token in the batch, how many
    tokens it has, the position of the first, and where in `table` its row's pages begin; then all rows' pages.
    longest: tokens in the KV of the longest row.
    """

    table: torch.Tensor
    count: int
    tokens: int
    group: int
    longest: int


def prefill_tiles(rows: Sequence[Row], group: int, device: torch.device) -> PrefillTiles:
    """Tiles for a batch of `rows`, whose tokens lie one row after the other; `group`: query heads per KV head."""
    each = tile_tokens(group, sum(row.count for row in rows))
    count = sum(-(-row.count // each) for row in rows)
    longest = max(row.end for row in rows)
    numbers = np.empty(count * FIELDS + sum(-(-row.end // PAGE_TOKENS) for row in rows), dtype=np.int32)
    write_tiles(numbers, rows, each, count)
    return PrefillTiles(_on(device, numbers), count, each, group, longest)


def tile_tokens(group: int, tokens: int) -> int:
    """Query tokens of a full tile, in a batch of `tokens`: few tokens do not fill a large tile, whose programs would
    then pass on and add up mostly padding."""
    return max((_ROWS if tokens * group > _FEW_ROWS else _FEW_ROWS) // group, 1)


def most_tiles(tokens: int, rows: int, each: int) -> int:
    """Tiles of `each` tokens that up to `tokens` in up to `rows` rows can need."""
    rows = min(rows, tokens)
    return (tokens - rows) // each + rows


def write_tiles(table: Ints, rows: Sequence[Row], each: int, count: int) -> None:
    """`PrefillTiles.table` on the host, filled up to `count` tiles with copies of the last: they compute the same."""
    tiles: list[tuple[int, int, int, int]] = []
    at, held = 0, count * FIELDS
    for row in rows:
        tiles += [
            (at + first, min(each, row.count - first), row.position + first, held)
            for first in range(0, row.count, each)
        ]
        pages = -(-row.end // PAGE_TOKENS)
        table[held : held + pages] = row.pages[:pages]
        at, held = at + row.count, held + pages
    tiles.sort(key=_keys, reverse=True)  # the last ones to run are then short
    tiles += tiles[-1:] * (count - len(tiles))
    table[: count * FIELDS] = [number for tile in tiles for number in tile]


def _keys(tile: tuple[int, int, int, int]) -> int:
    """Keys that a tile's last token sees."""
    return tile[1] + tile[2]


def _on(device: torch.device, numbers: Ints) -> torch.Tensor:
    host = torch.from_numpy(numbers)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
