"""Owns how a ragged batch goes through a fused span on a GPU: by graph, or eagerly as it is.

Must not know kernels' insides, weights or leases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from shoal.blocks.batch import Row, make_batch
from shoal.blocks.devices import out_of_memory
from shoal.blocks.fused_cuda import FusedSpan
from shoal.blocks.graphs import USES_BEFORE_CAPTURE, Graphs, inputs_of
from shoal.blocks.kv import PAGE_TOKENS
from shoal.blocks.sizes import CHUNKS, PAGES, ROWS, Layout, PageArrays, exact_size, size_of, split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.blocks.fused_cuda import Inputs, Turns
    from shoal.blocks.kv import KVPool
    from shoal.blocks.parts import Parts
    from shoal.blocks.sizes import Step

WARM_SIZES = 3  # of contexts: longer ones need no other kernels


class Steps:
    """Forwards of a span whose parts are all fused, with our kernels."""

    def __init__(self, parts: Parts, kv: KVPool) -> None:
        self._span, self._kv = FusedSpan(parts, kv), kv
        self._rotary = parts.rotary if parts.rotary is not None and parts.rotary.by_length else None
        self._arrays = PageArrays(kv.n_pages)
        self._width = parts.spec.hidden_size
        self.graphs = Graphs(self._span, self._width)

    def forward(self, hidden: torch.Tensor, rows: Sequence[Row], run: range) -> torch.Tensor:
        """Hidden states `[T, H]` of rows through the blocks of `run`: `[T, H]` on the device.

        If memory runs out, graphs go, and the step runs again without. Raises ValueError for a row that does not fit.
        """
        try:
            return self._forward(hidden, rows, run)
        except RuntimeError as error:
            if not (out_of_memory(error) and self.graphs.hold_memory):
                raise
        self.graphs.give_way()  # not before the error has let go of what the step had on the device
        return self._forward(hidden, rows, run)

    def _forward(self, hidden: torch.Tensor, rows: Sequence[Row], run: range) -> torch.Tensor:
        held = self._arrays.of(rows)
        turns, step = self._turns(held), split(held)
        size = size_of(run, step, self._span.group)
        if size is not None:
            return self.graphs.step(size, step, hidden, turns)
        hidden = hidden.to(self._kv.device, self._kv.dtype, non_blocking=True)
        return self._span.forward(hidden, run, self._inputs(step, run, turns))

    def warm_up(self, run: range, rows: int, tokens: int, step_tokens: int) -> None:
        """Compile and measure what steps of up to `step_tokens` need, so that nobody who is served waits for a
        compiler, which takes a second or two for each kernel; capture decode steps of up to `rows` rows, contexts of
        `tokens`.

        Runs on whatever pages 0 onwards hold: call it before anybody's tokens are there.
        """
        pages = tuple(range(min(-(-tokens // PAGE_TOKENS), self._kv.n_pages)))
        row = Row(pages, len(pages) * PAGE_TOKENS - 1, 1)
        for count in ROWS:
            for _ in range(USES_BEFORE_CAPTURE + 1 if count <= rows else 1):
                self.forward(self._nothing(count), (row,) * count, run)
        for held in (pages for pages in PAGES[:WARM_SIZES] if pages <= self._kv.n_pages):
            for count in CHUNKS:
                self._warm_up_chunk(run, held, count)
        held = min(PAGES[1], self._kv.n_pages)
        if (count := min(step_tokens - 1, held * PAGE_TOKENS)) > CHUNKS[-1]:  # no graph holds it
            self._warm_up_chunk(run, held, count, row)

    def _warm_up_chunk(self, run: range, held: int, count: int, *beside: Row) -> None:
        """`count` tokens at the end of a row of `held` pages."""
        chunk = Row(tuple(range(held)), held * PAGE_TOKENS - count, count)
        self.forward(self._nothing(len(beside) + count), (*beside, chunk), run)

    def _nothing(self, count: int) -> torch.Tensor:
        """Zeros as hidden states `[count, H]`, where a peer's steps take theirs from."""
        room = self.graphs.room(count)
        if room is None:
            return torch.zeros((count, self._width), device=self._kv.device, dtype=self._kv.dtype)
        return room.zero_()

    def _turns(self, rows: tuple[Row, ...]) -> Turns:
        """Rotations that depend on the rows' lengths; all others are worked out on the device from positions."""
        if self._rotary is None:
            return {}
        shown = torch.empty((1, 1, 1), dtype=torch.float32, device=self._kv.device)
        turns = self._rotary.turns(shown, make_batch(rows, self._kv.device))
        return {name: (turn[:, 0].real.contiguous(), turn[:, 0].imag.contiguous()) for name, turn in turns.items()}

    def _inputs(self, step: Step, run: range, turns: Turns) -> Inputs:
        layout = Layout(exact_size(run, step, self._span.group))
        ints = np.zeros(layout.length, dtype=np.int32)
        layout.write(layout.cut(ints), step, self._span.group, self._kv.scratch_page)
        return inputs_of(layout, torch.from_numpy(ints).to(self._kv.device), self._span, turns)
