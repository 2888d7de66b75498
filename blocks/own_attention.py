"""Owns the way to run blocks that compute attention by themselves (BLOOM, Falcon); must not know weights or families.

Such a block wants a rectangle: `[B, n]` tokens and the dense keys of all of them. Rows of equal count become one
rectangle, so that all decode tokens share a call; `DenseCache` writes to pages and hands back what they then hold.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from shoal.blocks.batch import slots_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.blocks.batch import Batch, Row
    from shoal.blocks.kv import KVPool


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Rows of `n` tokens each: `tokens [B, n]` indexes the ragged batch; `read [B, L]` and `write [B * n]` index slots.

    `seen [B, 1, n, L]` is true where a token sees a slot. Padding repeats the row's own first slot.
    """

    tokens: torch.Tensor
    read: torch.Tensor
    write: torch.Tensor
    seen: torch.Tensor


def rectangles(batch: Batch) -> list[Rectangle]:
    """The batch's rows, grouped by their count of new tokens."""
    groups: dict[int, list[tuple[Row, int]]] = defaultdict(list)
    first = 0
    for row in batch.rows:
        groups[row.count].append((row, first))
        first += row.count
    return [_rectangle(count, members, batch.device) for count, members in groups.items()]


def _rectangle(count: int, members: list[tuple[Row, int]], device: torch.device) -> Rectangle:
    held = [slots_of(row.pages, 0, row.end) for row, _ in members]
    width = max(len(slots) for slots in held)
    read = np.stack([np.pad(slots, (0, width - len(slots)), constant_values=slots[0]) for slots in held])
    tokens = np.stack([np.arange(first, first + count) for _, first in members])
    positions = np.stack([np.arange(row.position, row.end) for row, _ in members])
    seen = np.arange(width)[None, None] <= positions[:, :, None]
    return Rectangle(
        tokens=torch.from_numpy(tokens).to(device),
        read=torch.from_numpy(read).to(device),
        write=torch.from_numpy(np.concatenate([slots[-count:] for slots in held])).to(device),
        seen=torch.from_numpy(seen).to(device)[:, None],
    )


class DenseCache:
    """The KV of one rectangle: stands where a block expects transformers' cache."""

    __slots__ = ("pool", "rectangle")

    def __init__(self, pool: KVPool, rectangle: Rectangle) -> None:
        self.pool, self.rectangle = pool, rectangle

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, block: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write `[B, heads, n, width]` into pages; hand back all of the rows' `[B, heads, L, width]`."""
        kv = self.pool.block(block)
        # Blocks that repeat a head for each query that shares it (Falcon) hand over copies: one is stored.
        copies = keys.shape[1] // kv.keys.shape[1]
        new_keys, new_values = (new[:, ::copies].transpose(1, 2).flatten(0, 1) for new in (keys, values))
        kv.write(self.rectangle.write, new_keys, new_values)
        held_keys, held_values = kv.select(self.rectangle.read.flatten())
        return self._spread(held_keys, copies, keys.dtype), self._spread(held_values, copies, values.dtype)

    def _spread(self, held: torch.Tensor, copies: int, dtype: torch.dtype) -> torch.Tensor:
        by_row = held.view(*self.rectangle.read.shape, *held.shape[1:])
        return by_row.transpose(1, 2).repeat_interleave(copies, dim=1).to(dtype)


@dataclass(frozen=True, slots=True)
class Bias:
    """How a block of `heads` wants its ALiBi: built by `build(ones, heads, dtype)`, `[heads, 1, L]`.

    `divisor`: what it is divided by before it is merged into the mask; None: the block adds it to the scores itself.
    """

    build: Callable[[torch.Tensor, int, torch.dtype], torch.Tensor]
    heads: int
    divisor: float | None


def bias_arguments(rectangle: Rectangle, dtype: torch.dtype, bias: Bias | None) -> dict[str, torch.Tensor | None]:
    """The keywords `attention_mask` (additive, float) and `alibi` of a block that computes its own attention."""
    least = torch.finfo(dtype).min
    zeros = torch.zeros((), dtype=dtype, device=rectangle.seen.device)
    mask = torch.where(rectangle.seen, zeros, least)
    if bias is None:
        return {"attention_mask": mask, "alibi": None}
    rows, width = rectangle.read.shape
    ones = torch.ones((1, width), dtype=torch.long, device=mask.device)
    alibi = bias.build(ones, bias.heads, dtype).repeat(rows, 1, 1)
    if bias.divisor is not None:
        by_head = alibi.view(rows, bias.heads, 1, width) / bias.divisor
        mask = torch.where(rectangle.seen, by_head, least)
    return {"attention_mask": mask, "alibi": alibi}
