"""What a session was given, as long as a hop may have to be filled with it again. Knows no session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from shoal.blocks.activations import pack, to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.peer.wire import Buffer


class Inputs:
    """Hidden states `[T, hidden]` from position 0 on, kept unless there is a way to make them again. `form`: how they
    travel, `dtype` what they were before that."""

    def __init__(self, form: str, dtype: torch.dtype) -> None:
        self._form, self._dtype = form, dtype
        self._kept: list[torch.Tensor] = []
        self._recall: Callable[[int, int], torch.Tensor] | None = None

    @property
    def known(self) -> bool:
        """Whether they can be made again."""
        return self._recall is not None

    def recall_with(self, recall: Callable[[int, int], torch.Tensor]) -> None:
        """Positions `[a, b)` can be made again."""
        self._recall = recall

    def keep(self, rows: torch.Tensor) -> None:
        """These come next."""
        if self._recall is None:
            self._kept.append(rows)

    def rewind(self, position: int) -> None:
        """Forget what comes behind."""
        if self._kept:
            self._kept = [torch.cat(self._kept)[:position]]

    def packed(self, rows: torch.Tensor) -> Buffer:
        """Rows on the host, as they travel."""
        return to_bytes(pack(rows, self._form))

    def again(self, start: int, stop: int) -> Buffer:
        """Those of positions `[start, stop)`, as they travel."""
        if self._recall is None:
            return self.packed(torch.cat(self._kept)[start:stop])
        return self.packed(self._recall(start, stop).detach().to("cpu", self._dtype))
