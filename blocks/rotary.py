"""Owns rotary position embeddings of a ragged batch; must not know pages, blocks or weights.

Most kinds depend on the position alone and are computed for all tokens at once. Two kinds, longrope and dynamic, depend
on the sequence's length as well: transformers' module takes it from the greatest position it is shown, so that each row
is shown to it alone, with its length's last position added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from shoal.blocks.batch import Row
from shoal.blocks.choices import EACH_ITS_OWN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.blocks.batch import Batch
    from torch import nn

Embedding = tuple[torch.Tensor, torch.Tensor]

TABLE_TOKENS = 8192  # positions whose rotations are kept once they are made: 4 MiB for heads of 128


class Rotary:
    """A family's rotary module; `types` are the attention types it differs by (empty: one for all blocks)."""

    def __init__(self, module: nn.Module, types: tuple[str, ...] = ()) -> None:
        self._module: Any = module
        self._types = types
        self._tables: dict[tuple[str, torch.device], torch.Tensor] = {}

    @property
    def width(self) -> int:
        """How many of a head's numbers are rotated."""
        return 2 * len(self._named(self.names[0], "inv_freq"))

    @property
    def names(self) -> tuple[str, ...]:
        """The attention types with rotations of their own; "" where all blocks share one."""
        return self._types or ("",)

    @property
    def by_length(self) -> bool:
        """Whether any rotation depends on more than the position."""
        return any(self._by_length(name) for name in self.names)

    def frequencies(self, name: str) -> tuple[torch.Tensor, float] | None:
        """Angles per position `[width / 2]` and the factor on cosine and sine; None where they depend on the length."""
        if self._by_length(name):
            return None
        return self._named(name, "inv_freq").float(), float(self._named(name, "attention_scaling"))

    def turns(self, hidden: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """The same as complex rotations `[T, 1, width / 2]`, by attention type."""
        return {name: self._turns_of_type(hidden, batch, name) for name in self.names}

    def _turns_of_type(self, hidden: torch.Tensor, batch: Batch, name: str) -> torch.Tensor:
        if (table := self.table(name, hidden.device, max(row.end for row in batch.rows))) is not None:
            return _rows_of(table, batch)
        if (found := self.frequencies(name)) is not None:
            return _turned(batch.positions[0], *found)
        cos, sin = (part[0, :, : part.shape[-1] // 2].float() for part in self._of_type(hidden, batch, name))
        return torch.complex(cos, sin)[:, None]

    def table(self, name: str, device: torch.device, end: int) -> torch.Tensor | None:
        """Complex rotations `[length, 1, width / 2]` of the positions up to `end` and more, made once; None where they
        depend on the length, and for so many that they are not kept."""
        table = self._tables.get((name, device))
        if table is not None and end <= len(table):
            return table
        if end > TABLE_TOKENS or (found := self.frequencies(name)) is None:
            return None
        length = min(TABLE_TOKENS, 1 << (end - 1).bit_length())
        table = self._tables[name, device] = _turned(torch.arange(length, device=device), *found)
        return table

    def embeddings(self, hidden: torch.Tensor, batch: Batch) -> dict[str, Embedding]:
        """Cosines and sines `[1, T, width]` by attention type; one entry under "" where all blocks share them."""
        return {name: self._of_type(hidden, batch, name) for name in self.names}

    def _of_type(self, hidden: torch.Tensor, batch: Batch, name: str) -> Embedding:
        if not self._by_length(name):
            return self._call(hidden, batch.positions, name)
        parts = [self._of_row(hidden, row, name) for row in batch.rows]
        return torch.cat([cos for cos, _ in parts], dim=1), torch.cat([sin for _, sin in parts], dim=1)

    def _of_row(self, hidden: torch.Tensor, row: Row, name: str) -> Embedding:
        if row.length == EACH_ITS_OWN and row.count > 1:
            parts = [self._of_row(hidden, part, name) for part in self._alike(row, name)]
            return torch.cat([cos for cos, _ in parts], dim=1), torch.cat([sin for _, sin in parts], dim=1)
        last = max(row.end, row.length) - 1
        positions = torch.tensor([[*range(row.position, row.end), last]], device=hidden.device)
        self._forget(name)
        cos, sin = self._call(hidden, positions, name)
        return cos[:, :-1], sin[:, :-1]

    def _alike(self, row: Row, name: str) -> Iterator[Row]:
        """A row's parts whose tokens are turned as if each were the last: below the length that the model was trained
        on all alike, beyond it by longrope's other frequencies, or each by its own."""
        by_two, limit = self._kind(name) == "longrope", self._module.original_max_seq_len
        if by_two:
            parameters: Any = self._module.config.rope_parameters
            limit = (parameters[name] if name else parameters)["original_max_position_embeddings"]
        cut = min(max(limit, row.position), row.end)
        if cut > row.position:
            yield Row(row.pages, row.position, cut - row.position)
        size = row.end - cut if by_two else 1
        for at in range(cut, row.end, max(size, 1)):
            yield Row(row.pages, at, size)

    def _forget(self, name: str) -> None:
        """Undo what the last row's length did to the module: it would show in the next row's frequencies."""
        prefix = f"{name}_" if name else ""
        setattr(self._module, f"{prefix}inv_freq", getattr(self._module, f"{prefix}original_inv_freq").clone())
        setattr(self._module, f"{prefix}max_seq_len_cached", self._module.original_max_seq_len)

    def _call(self, hidden: torch.Tensor, positions: torch.Tensor, name: str) -> Embedding:
        cos, sin = self._module(hidden, positions, name) if name else self._module(hidden, positions)
        return cos, sin

    def _named(self, name: str, what: str) -> Any:
        return getattr(self._module, f"{name}_{what}" if name else what)

    def _kind(self, name: str) -> str:
        kind: Any = self._module.rope_type
        return str(kind[name] if name else kind)

    def _by_length(self, name: str) -> bool:
        kind = self._kind(name)
        return kind == "longrope" or "dynamic" in kind


def _turned(positions: torch.Tensor, frequencies: torch.Tensor, factor: float) -> torch.Tensor:
    """Complex rotations `[T, 1, width / 2]` of positions `[T]`."""
    angles = positions[:, None, None] * frequencies
    return torch.polar(angles.new_full((), factor).expand_as(angles), angles)


def _rows_of(table: torch.Tensor, batch: Batch) -> torch.Tensor:
    """What `table` has for the batch's positions: a view for a single row."""
    if len(batch.rows) == 1:
        return table.narrow(0, batch.rows[0].position, batch.rows[0].count)
    return table.index_select(0, batch.positions[0])
