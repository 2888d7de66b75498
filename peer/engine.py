"""The device thread: runs batches of pieces through a span, one at a time. Knows no leases, messages or sockets.

The event loop hands over work and awaits its outcome; bytes become tensors and tensors bytes on the device thread: the
loop stays free to answer. A quick step of a session that is alone runs on the loop's own thread: nobody needs the loop
meanwhile, and two hand-overs between threads that sleep take up to 0.2 ms. `Engine` is the interface; the simulation
puts a toy in its place.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import traceback
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from shoal.dht.ending import leave_behind
from shoal.peer.order import EngineFault, Order, fault_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal.blocks.span import Span
    from shoal.peer.wire import Buffer

T = TypeVar("T")

MAX_BATCH = 256  # rows of one step
STEP_TOKENS, STEP_TOKENS_CUDA = 512, 2048
SHORT_TOKENS, SHORT_S = 64, 0.02  # of a quick step: up to so many tokens, and the last like it took less
PATIENCE_S = 30.0  # with a step under way when the engine is closed
LAST_STEP_S = 0.5  # the same where nobody needs what it computes any more
_KNOWN = 512


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` tokens of one lease for one engine step: rows `[offset, offset + count)` of `payload`.

    `position`: tokens of the lease already in its KV pages. `keep_rows`: how many of the last rows are to be returned.
    `length`: tokens of the sequence once its prompt is in (0: position + count), as `blocks.batch.Row` takes it.
    """

    payload: Buffer
    dtype: str
    offset: int
    count: int
    pages: tuple[int, ...]
    position: int
    start: int
    stop: int
    keep_rows: int
    length: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    """The kept rows of one piece, in the piece's dtype. `finite`: no NaN or infinity among all its rows."""

    payload: Buffer
    finite: bool


class Engine(Protocol):
    """What a peer needs of its device. Work is done in the order in which it was asked for.

    `broken`: the device is lost for good; nothing will run on it again.
    """

    start: int
    stop: int
    width: int
    n_pages: int
    page_tokens: int
    max_step_tokens: int
    max_batch: int
    broken: bool

    async def run(self, batch: Sequence[Piece]) -> list[Output]:
        """Outputs in the batch's order. Errors: `EngineFault`."""
        ...

    def quick(self, start: int, stop: int, count: int) -> bool:
        """Whether `run_now` may be called for so many tokens through these blocks: nothing is under way, and it would
        keep its caller for a moment only."""
        ...

    def run_now(self, batch: Sequence[Piece]) -> list[Output]:
        """As `run`, on the caller's thread. Errors: `EngineFault`."""
        ...

    async def save(self, pages: Sequence[int]) -> object:
        """Copies of KV pages in host memory, for `restore`. Errors: `EngineFault`."""
        ...

    async def restore(self, saved: object, pages: Sequence[int]) -> None:
        """Write what was saved to as many pages. Errors: `EngineFault`."""
        ...

    async def copy(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy KV pages to others. Errors: `EngineFault`."""
        ...

    def close(self) -> None:
        """End the device thread."""
        ...


class DeviceEngine:
    """`Engine` over a `Span`: a thread of its own, so that one process uses one device from one thread."""

    def __init__(self, span: Span, page_tokens: int) -> None:
        from shoal.blocks.devices import compute_on
        from shoal.blocks.span import Row
        from shoal.peer.transfer import Transfer

        self._row = Row
        self.span = span
        compute_on(span.device)  # `run_now` runs on this thread
        self.start, self.stop = span.blocks.start, span.blocks.stop
        self.width = span.spec.hidden_size
        self.n_pages, self.page_bytes = span.kv.n_pages, span.kv.page_bytes
        self.page_tokens = page_tokens
        self.max_step_tokens = STEP_TOKENS_CUDA if span.device.type == "cuda" else STEP_TOKENS
        self.max_batch = MAX_BATCH
        self.broken = False
        self._transfer = Transfer(span)
        # A second thread with OpenMP workers of its own would be in the way of the first's.
        self._may_stay = span.device.type == "cuda" or _threads() == 1
        self._handed_over: dict[Order[Any], None] = {}  # to the device thread, and not back yet
        self._began: float | None = None  # the device thread's present work
        self._began_here: float | None = None  # and that of whoever calls `run_now`
        self._took: dict[tuple[int, int, int], float] = {}  # seconds of the last step of so many blocks and tokens
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="shoal-device", daemon=True)
        self._thread.start()

    async def run(self, batch: Sequence[Piece]) -> list[Output]:
        """Outputs in the batch's order. Errors: `EngineFault`."""
        pieces = tuple(batch)
        return await self._do(lambda: self._forward(pieces))

    def quick(self, start: int, stop: int, count: int) -> bool:
        """Whether `run_now` may be called for so many tokens: the last step like it was short, and nothing runs."""
        if not self._may_stay or self._handed_over or count > SHORT_TOKENS:
            return False
        return self._took.get(_like(start, stop, count), SHORT_S) < SHORT_S

    def run_now(self, batch: Sequence[Piece]) -> list[Output]:
        """As `run`, on the caller's thread. Errors: `EngineFault`."""
        self._check()
        self._began_here = time.monotonic()
        try:
            return self._forward(tuple(batch))
        except Exception as error:
            self._examine(error)
            raise fault_of(error) from error
        finally:
            self._began_here = None

    async def save(self, pages: Sequence[int]) -> object:
        """Copies of KV pages in host memory. Errors: `EngineFault`."""
        return await self._do(lambda: self.span.kv.save(pages))

    async def restore(self, saved: object, pages: Sequence[int]) -> None:
        """Write what `save` gave to as many pages. Errors: `EngineFault`."""
        from shoal.blocks.kv import HostPages

        if not isinstance(saved, HostPages):
            raise EngineFault("there is nothing to restore these pages from")
        await self._do(lambda: self.span.kv.restore(saved, pages))

    async def copy(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy KV pages to others. Errors: `EngineFault`."""
        await self._do(lambda: self.span.kv.copy(source, target))

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """End the device thread once it is idle. The span's memory goes, even if somebody still knows this engine."""
        self._work.put(None)
        self._thread.join(timeout=0 if self.broken else patience_s)
        if self._thread.is_alive():
            leave_behind(self._thread)
        else:
            for name in ("span", "_transfer"):
                self.__dict__.pop(name, None)

    def under_way_s(self) -> float:
        """Seconds for which the device has been at its present work; 0 if it is at none. From any thread."""
        now, began = time.monotonic(), (self._began, self._began_here)
        return max((now - each for each in began if each is not None), default=0.0)

    def give_up(self, why: str) -> None:
        """The device does not answer: whoever waits for it gets an `EngineFault`, now and later. From any thread."""
        self.broken = True
        for order in list(self._handed_over):
            order.give_up(EngineFault(why))

    def _check(self) -> None:
        if self.broken:
            raise EngineFault("the device is lost")

    async def _do(self, work: Callable[[], T]) -> T:
        self._check()
        order = Order(work, asyncio.get_running_loop().create_future(), self._examine, self._handed_back)
        self._handed_over[order] = None
        self._work.put(order.carry_out)
        outcome: T = await order.outcome
        return outcome

    def _handed_back(self, order: Order[Any]) -> None:
        self._handed_over.pop(order, None)

    def _serve(self) -> None:
        import torch
        from shoal.blocks.devices import compute_on

        compute_on(self.span.device)
        with torch.inference_mode():
            while (carry_out := self._work.get()) is not None:
                self._began = time.monotonic()
                carry_out()
                self._began = None

    def _examine(self, error: Exception) -> None:
        """After an error: free what the failed step held, and see whether the device still works.

        A CUDA error that is not one of memory stays with the process: every later call fails as well.
        """
        import torch

        traceback.clear_frames(error.__traceback__)  # they hold the step's tensors
        if self.span.device.type != "cuda":
            return
        try:
            torch.cuda.empty_cache()
            torch.ones(1, device=self.span.device).add_(1).item()
        except torch.OutOfMemoryError:
            return
        except RuntimeError:
            self.broken = True

    def _forward(self, batch: tuple[Piece, ...]) -> list[Output]:
        """Pieces of one sub-range go through the span together."""
        first = batch[0]
        if len(batch) == 1:
            return self._forward_one(first)
        if all(piece.start == first.start and piece.stop == first.stop for piece in batch):
            return self._forward_range(batch, first.start, first.stop)
        outputs: dict[int, Output] = {}
        order = sorted(range(len(batch)), key=lambda index: (batch[index].start, batch[index].stop))
        for (start, stop), group in groupby(order, key=lambda index: (batch[index].start, batch[index].stop)):
            indices = list(group)
            pieces = [batch[index] for index in indices]
            outputs.update(zip(indices, self._forward_range(pieces, start, stop), strict=True))
        return [outputs[index] for index in range(len(batch))]

    def _forward_one(self, piece: Piece) -> list[Output]:
        started = time.perf_counter()
        outputs = self._forward_bare(piece) or self._forward_range((piece,), piece.start, piece.stop)
        if len(self._took) >= _KNOWN:
            self._took.clear()
        self._took[_like(piece.start, piece.stop, piece.count)] = time.perf_counter() - started
        return outputs

    def _forward_bare(self, piece: Piece) -> list[Output]:
        """A lone token that needs no tensor; empty if it does."""
        if piece.count > 1 or piece.dtype != "float32" or not piece.keep_rows:
            return []
        row, size = self._row(piece.pages, piece.position, 1, piece.length), 4 * self.width
        state = memoryview(piece.payload).cast("B")[piece.offset * size : (piece.offset + 1) * size]
        found = self.span.single(state, row, piece.start, piece.stop)
        return [] if found is None else [Output(*found)]

    def _forward_range(self, pieces: Sequence[Piece], start: int, stop: int) -> list[Output]:
        import torch

        rows = [self._row(piece.pages, piece.position, piece.count, piece.length) for piece in pieces]
        with torch.inference_mode():
            return self._transfer.unload(self.span.forward(self._transfer.load(pieces), rows, start, stop), pieces)


def _like(start: int, stop: int, count: int) -> tuple[int, int, int]:
    """What a step's time mostly depends on."""
    return start, stop, count.bit_length()


def _threads() -> int:
    import torch

    return torch.get_num_threads()
