"""Owns the tiles that prefill attention works in: a few integers each, worked out on the host and copied at once.

Must not know kernels: numbers alone, no Triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from shoal.blocks.kv import PAGE_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.blocks.batch import Row

Ints = np.ndarray[tuple[int], np.dtype[np.int32]]

FIELDS = 4
_ROWS = 128  # queries stacked in one tile


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
    count = tile_count(rows, group)
    longest = max(row.end for row in rows)
    return PrefillTiles(_on(device, tile_numbers(rows, group, count)), count, tile_tokens(group), group, longest)


def tile_tokens(group: int) -> int:
    """Query tokens of a full tile."""
    return max(_ROWS // group, 1)


def tile_count(rows: Sequence[Row], group: int) -> int:
    """Tiles that a batch of rows needs."""
    tokens = tile_tokens(group)
    return sum(-(-row.count // tokens) for row in rows)


def tile_numbers(rows: Sequence[Row], group: int, count: int) -> Ints:
    """`PrefillTiles.table` on the host, filled up to `count` tiles with copies of the last: they compute the same."""
    tokens = tile_tokens(group)
    counts = np.array([row.count for row in rows])
    positions = np.array([row.position for row in rows])
    pages = [np.asarray(row.pages[: -(-row.end // PAGE_TOKENS)], dtype=np.int32) for row in rows]
    n_tiles = -(-counts // tokens)
    of_row = np.repeat(np.arange(len(rows)), n_tiles)
    first = (np.arange(len(of_row)) - np.repeat(np.cumsum(n_tiles) - n_tiles, n_tiles)) * tokens
    tiles = np.empty((len(of_row), FIELDS), dtype=np.int32)
    tiles[:, 0] = (np.cumsum(counts) - counts)[of_row] + first
    tiles[:, 1] = np.minimum(counts[of_row] - first, tokens)
    tiles[:, 2] = positions[of_row] + first
    starts = np.cumsum([0, *(len(held) for held in pages)])[:-1]
    tiles[:, 3] = count * FIELDS + starts[of_row]
    # Those with the most keys first: the last ones to run are then short.
    tiles = tiles[np.argsort(-(tiles[:, 1] + tiles[:, 2]), kind="stable")]
    spare = np.repeat(tiles[-1:], count - len(tiles), axis=0)
    return np.concatenate([tiles.reshape(-1), spare.reshape(-1), *pages])


def _on(device: torch.device, numbers: Ints) -> torch.Tensor:
    host = torch.from_numpy(numbers)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
