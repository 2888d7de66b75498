"""One token alone through a span's blocks by our own C, from bytes to bytes; must not know leases.

What a peer does for a lone session's token beside reading its weights, it does with cold caches: the weights went
through them since the last one. So as little as possible is done, and no tensor is made.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import torch
from shoal.blocks.batch import check_row
from shoal.blocks.cpu.short import Token
from shoal.blocks.kv import PAGE_TOKENS

if TYPE_CHECKING:
    from shoal.blocks.batch import Row
    from shoal.blocks.cpu.short import ShortSteps
    from shoal.blocks.parts import Parts

_ROTATION_BYTES = 8  # of a complex number


class SingleToken:
    """For spans whose hidden states are float32."""

    def __init__(self, short: ShortSteps, parts: Parts, n_slots: int) -> None:
        self._short, self._rotary, self._n_slots = short, parts.rotary, n_slots
        self._turn_bytes = _ROTATION_BYTES * (parts.rotary.width // 2) if parts.rotary is not None else 0
        self._hidden = torch.empty(parts.spec.hidden_size)
        self._at, self._bytes = self._hidden.data_ptr(), self._hidden.numpy().data.cast("B")
        self._tokens = (Token * 1)()

    def forward(self, payload: memoryview, run: range, row: Row) -> tuple[bytes, bool] | None:
        """What the blocks of `run` make of the float32 hidden state in `payload`, and whether all of it is finite; None
        if its rotations are not at hand. Errors: `ValueError` for a row that does not fit."""
        check_row(row, self._n_slots)
        rotations = []
        for name in self._short.names:
            table = self._rotary.table(name, self._hidden.device, row.end) if self._rotary is not None else None
            if table is None:
                return None
            rotations.append(table.data_ptr() + row.position * self._turn_bytes)
        pages = array("i", row.pages)
        self._tokens[0] = Token(pages.buffer_info()[0], row.position, 1)
        self._bytes[:] = payload
        finite = self._short.call(run, self._tokens, 1, len(pages) * PAGE_TOKENS, rotations, self._at)
        return bytes(self._bytes), finite
