"""Owns rotary position embeddings of a ragged batch; must not know pages, blocks or weights.

Most kinds depend on the position alone and are computed for all tokens at once. Two kinds, longrope and dynamic, depend
on the sequence's length as well: transformers' module takes it from the greatest position it is shown, so that each row
is shown to it alone, with its length's last position added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from shoal.blocks.batch import Batch, Row
    from torch import nn

Embedding = tuple[torch.Tensor, torch.Tensor]


class Rotary:
    """A family's rotary module; `types` are the attention types it differs by (empty: one for all blocks)."""

    def __init__(self, module: nn.Module, types: tuple[str, ...] = ()) -> None:
        self._module, self._types = module, types

    def embeddings(self, hidden: torch.Tensor, batch: Batch) -> dict[str, Embedding]:
        """Cosines and sines `[1, T, width]` by attention type; one entry under "" where all blocks share them."""
        return {name: self._of_type(hidden, batch, name) for name in self._types or ("",)}

    def _of_type(self, hidden: torch.Tensor, batch: Batch, name: str) -> Embedding:
        if not self._by_length(name):
            return self._call(hidden, batch.positions, name)
        parts = [self._of_row(hidden, row, name) for row in batch.rows]
        return torch.cat([cos for cos, _ in parts], dim=1), torch.cat([sin for _, sin in parts], dim=1)

    def _of_row(self, hidden: torch.Tensor, row: Row, name: str) -> Embedding:
        last = max(row.end, row.length) - 1
        positions = torch.tensor([[*range(row.position, row.end), last]], device=hidden.device)
        self._forget(name)
        cos, sin = self._call(hidden, positions, name)
        return cos[:, :-1], sin[:, :-1]

    def _forget(self, name: str) -> None:
        """Undo what the last row's length did to the module: it would show in the next row's frequencies."""
        prefix = f"{name}_" if name else ""
        setattr(self._module, f"{prefix}inv_freq", getattr(self._module, f"{prefix}original_inv_freq").clone())
        setattr(self._module, f"{prefix}max_seq_len_cached", self._module.original_max_seq_len)

    def _call(self, hidden: torch.Tensor, positions: torch.Tensor, name: str) -> Embedding:
        cos, sin = self._module(hidden, positions, name) if name else self._module(hidden, positions)
        return cos, sin

    def _by_length(self, name: str) -> bool:
        kind: Any = self._module.rope_type
        kind = kind[name] if name else kind
        return kind == "longrope" or "dynamic" in kind
