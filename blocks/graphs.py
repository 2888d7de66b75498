"""Owns the steps of a fused span as CUDA graphs: inputs that stay in place, capture and replay.

Must not know blocks or weights: it is handed the forward. A graph replays a step's hundreds of kernels as one launch:
Python's share does not grow with the number of blocks. A graph is for one size of step (`sizes`); a smaller step is
padded with rows that see nothing and with tokens that are written to the scratch page.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from shoal.blocks.fused_cuda import Decodes, Inputs
from shoal.blocks.kernels.decode import choose_splits
from shoal.blocks.kernels.fetch import fetch
from shoal.blocks.kernels.tiles import PrefillTiles, tile_tokens
from shoal.blocks.kv import PAGE_TOKENS
from shoal.blocks.sizes import CHUNKS, ROWS_BESIDE, Layout

if TYPE_CHECKING:
    from shoal.blocks.fused_cuda import FusedSpan, Turns
    from shoal.blocks.sizes import Size, Step

MAX_GRAPHS = 128
USES_BEFORE_CAPTURE = 1  # kernels must have been compiled and chosen; and what is tried once is not worth a capture
_POLL_S = 2e-5
STEPS_BEFORE_RETRY = 256  # without a capture, after memory ran out
STEPS_BEFORE_MORE = 4096  # until one graph more is kept, where memory was found for few


class Graphs:
    """Steps of `span`: eager the first times, then by graphs, of which the least used go when there are many.

    All of them go when the device's memory runs out (`give_way`): steps get on without, more slowly.
    """

    def __init__(self, span: FusedSpan, width: int) -> None:
        self._span, self._width = span, width
        self._graphs: OrderedDict[tuple[Size, bool], _Graph] = OrderedDict()
        self._most, self._steps, self._captures_after = MAX_GRAPHS, 0, 0
        self._pool = torch.cuda.graph_pool_handle()
        self._room = torch.zeros((ROWS_BESIDE[-1] + CHUNKS[-1], width), dtype=span.dtype).pin_memory()

    def __len__(self) -> int:
        return sum(graph.captured for graph in self._graphs.values())

    def room(self, count: int) -> torch.Tensor | None:
        """Page-locked rows `[count, H]`: steps fetch by themselves what lies there until they end. None: too many."""
        return self._room[:count] if count <= len(self._room) else None

    @property
    def hold_memory(self) -> bool:
        """Whether any are there, if only as a size's inputs."""
        return bool(self._graphs)

    def give_way(self) -> None:
        """Free what graphs hold on the device. After a while steps are captured again, at first half as many."""
        torch.cuda.synchronize(self._span.kv.device)  # the last step may still be reading its inputs
        if captured := len(self):
            self._most = max(1, captured // 2)
        self._captures_after = self._steps + STEPS_BEFORE_RETRY
        self._graphs.clear()
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()

    def step(self, size: Size, step: Step, hidden: torch.Tensor, turns: Turns) -> torch.Tensor:
        """Hidden states `[T, H]` of a step, decodes first, through the blocks of `size`; `turns` as in `Inputs`."""
        self._steps += 1
        if self._steps % STEPS_BEFORE_MORE == 0:
            self._most = min(self._most + 1, MAX_GRAPHS)
        n = len(step.decodes)
        fetches = hidden.data_ptr() == self._room.data_ptr() and (not step.chunks or n == size.decodes)
        graph = self._graphs.get((size, fetches))
        if graph is None:
            source = self._room[: size.tokens] if fetches else None
            graph = self._graphs[size, fetches] = _Graph(size, self._span, self._width, source)
            if len(self._graphs) > self._most:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end((size, fetches))
        graph.fill(step, hidden, turns)
        out = graph.run(self._pool if self._steps > self._captures_after else None)
        if not step.chunks or n == size.decodes:
            return out[: len(hidden)].clone()
        return torch.cat([out[:n], out[size.decodes : size.decodes + len(hidden) - n]])


class _Graph:
    """One size of step: its inputs at fixed places on the device, all integers in one tensor.

    They are fetched by the step's first kernel, from page-locked memory, and the last of them, which numbers the steps,
    is sent back: so a step costs the host no call for them, and the host sees when it may write the next. Hidden states
    are fetched in the same way from `source [tokens, H]`, if given.
    """

    def __init__(self, size: Size, span: FusedSpan, width: int, source: torch.Tensor | None) -> None:
        self._size, self._span, self._layout, kv = size, span, Layout(size), span.kv
        self._source = source
        self._ints = torch.zeros(self._layout.length + 1, dtype=torch.int32, device=kv.device)
        self._pinned = torch.zeros_like(self._ints, device="cpu").pin_memory()
        self._fetched = torch.zeros(1, dtype=torch.int32).pin_memory()
        self._arrived = torch.zeros(1, dtype=torch.int32, device=kv.device)
        self._told, self._number = self._fetched.numpy(), self._pinned.numpy()[-1:]
        self._parts = self._layout.cut(self._pinned.numpy())
        self._uses = 0
        self._eager_in: int | None = None  # the thread that last ran it without a graph
        self._hidden = torch.zeros((size.tokens, width), device=kv.device, dtype=kv.dtype)
        self._turns: Turns = {}
        self._inputs = inputs_of(self._layout, self._ints, span, self._turns)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._out: torch.Tensor | None = None

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def fill(self, step: Step, hidden: torch.Tensor, turns: Turns) -> None:
        """Lay a step's inputs ready; integers are written only when the device has fetched the last ones."""
        if self._told[0] != self._number[0]:
            self._wait()
        self._layout.write(self._parts, step, self._span.group, self._span.kv.scratch_page)
        self._number += 1
        if self._source is None:
            self._place(self._hidden, hidden, len(step.decodes))
        for name, parts in turns.items():
            if name not in self._turns:
                cos, sin = (part.new_zeros((self._size.tokens, part.shape[1])) for part in parts)
                self._turns[name] = cos, sin
            for place, part in zip(self._turns[name], parts, strict=True):
                self._place(place, part, len(step.decodes))

    def _wait(self) -> None:
        """Until the last step has begun; or until nothing is under way, if it never did."""
        stream = torch.cuda.current_stream(self._ints.device)
        while self._told[0] != self._number[0] and not stream.query():
            time.sleep(_POLL_S)

    def _place(self, target: torch.Tensor, source: torch.Tensor, n: int) -> None:
        """Rows of the step's `n` decodes to the beginning, those of its chunks to where the padding ends."""
        at = self._size.decodes if len(source) > n else n
        if at == n:
            (target if len(source) == len(target) else target[: len(source)]).copy_(source, non_blocking=True)
            return
        target[:n].copy_(source[:n], non_blocking=True)
        target[at : at + len(source) - n].copy_(source[n:], non_blocking=True)

    def run(self, pool: Any) -> torch.Tensor:
        """The step's output `[tokens, H]`, overwritten by the next step of this size. `pool`: the memory of captures;
        None: none now."""
        self._uses += 1
        if self._graph is None and pool is not None and self._uses > USES_BEFORE_CAPTURE:
            if self._eager_in != threading.get_ident():
                self._forward()  # what a thread makes when it first computes, as cuBLAS's handle, cannot be captured
            self._capture(pool)
        if self._graph is None or self._out is None:
            self._eager_in = threading.get_ident()
            return self._forward()
        self._graph.replay()
        return self._out

    def _capture(self, pool: Any) -> None:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._ints.device)
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            out = self._forward()
        self._graph, self._out = graph, out

    def _forward(self) -> torch.Tensor:
        fetch(self._pinned, self._ints, self._source, self._hidden, self._arrived, self._fetched)
        return self._span.forward(self._hidden, range(self._size.start, self._size.stop), self._inputs)


def inputs_of(layout: Layout, ints: torch.Tensor, span: FusedSpan, turns: Turns) -> Inputs:
    """What a forward needs, named, of integers on the device that `layout` wrote."""
    size = layout.size
    positions, slots, ends, table, tiles = layout.cut(ints)
    decodes, chunks = None, None
    if size.decodes:
        splits = choose_splits(size.decodes, span.kv_heads, ints.device)
        decodes = Decodes(table, ends, splits)
    if size.chunk:
        longest = min(size.held, span.kv.n_pages) * PAGE_TOKENS
        each = tile_tokens(span.group, size.chunk)
        chunks = PrefillTiles(tiles, size.tiles, each, span.group, longest)
    return Inputs(positions, slots, turns, decodes, chunks)
