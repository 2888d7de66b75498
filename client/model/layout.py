"""From a padded batch to rows of real tokens and back, by transformers' rules for masks and positions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from shoal.client.model.history import EMPTY, History

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.blocks.spec import ModelSpec


@dataclass(frozen=True)
class Layout:
    """Which of the `[B, T]` new places hold tokens (`mask`), and the positions of those (`positions`)."""

    mask: torch.Tensor
    positions: torch.Tensor

    def rows(self, keys: torch.Tensor) -> list[History]:
        """Each row's real tokens; `keys` `[B, T]`."""
        held = zip(keys, self.positions, self.mask, strict=True)
        return [History.of(key[real].numpy(), position[real].numpy()) for key, position, real in held]

    def spread(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """`[B, T, width]` from each row's `[n, width]`; zeros at padding."""
        out = rows[0].new_zeros(*self.mask.shape, rows[0].shape[-1])
        out[self.mask.to(out.device)] = torch.cat(list(rows))
        return out


def lay_out(
    spec: ModelSpec,
    shape: tuple[int, int],
    before: tuple[Sequence[History], torch.Tensor],
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> Layout:
    """How `shape` (batch, tokens) new places follow `before`: the rows' histories and their `[B, past]` mask.

    Errors: `ValueError` for shapes that do not fit, and for positions that remote blocks cannot stand at: those count
    each row's tokens up by one, which is all that masks and padding make of them.
    """
    histories, past_mask = before
    past = past_mask.shape[1]
    mask = _mask(attention_mask, shape, past)
    whole = torch.cat([past_mask if past else mask[:, :0], mask], dim=1)
    positions = _positions(spec, whole, past) if position_ids is None else _given(position_ids, shape)
    if spec.family.rotary is not None:
        _check_counting(positions, mask, histories or [EMPTY] * shape[0])
    return Layout(mask, positions)


def _mask(attention_mask: torch.Tensor | None, shape: tuple[int, int], past: int) -> torch.Tensor:
    if attention_mask is None:
        return torch.ones(shape, dtype=torch.bool)
    batch, tokens = shape
    if attention_mask.ndim != 2 or tuple(attention_mask.shape) not in ((batch, past + tokens), shape):
        raise ValueError(
            f"attention_mask has shape {list(attention_mask.shape)}, but must be [{batch}, {past + tokens}]: one "
            "number for each token so far."
        )
    return attention_mask[:, -tokens:].to("cpu").bool()


def _positions(spec: ModelSpec, mask: torch.Tensor, past: int) -> torch.Tensor:
    """What the family's own model makes of a mask alone: OPT counts real tokens, all others count columns."""
    if spec.family.position_offset:
        return ((mask.long().cumsum(1) - 1).clamp(min=0))[:, past:]
    return torch.arange(mask.shape[1])[past:].expand(len(mask), -1)


def _given(position_ids: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    ids = position_ids.to("cpu").long()
    if ids.ndim != 2 or ids.shape[0] not in (1, shape[0]) or ids.shape[1] != shape[1]:
        raise ValueError(f"position_ids have shape {list(ids.shape)}, but must be {list(shape)}.")
    return ids.expand(shape)


def _check_counting(positions: torch.Tensor, mask: torch.Tensor, histories: Sequence[History]) -> None:
    for row, (own, real, history) in enumerate(zip(positions, mask, histories, strict=True)):
        found = [*history.positions[-1:].tolist(), *own[real].tolist()]
        if any(after != before + 1 for before, after in pairwise(found)):
            raise ValueError(
                f"The positions of row {row} do not count up by one: padding belongs before or behind a row's tokens, "
                "not between them, and position_ids must say the same in all calls."
            )
