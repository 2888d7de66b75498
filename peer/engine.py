"""The device thread: runs batches of pieces through a span, one at a time. Knows no leases, messages or sockets.

The event loop hands over a batch and awaits its outputs; bytes become tensors and tensors bytes on the device thread:
the loop stays free to answer. `Engine` is the interface; the simulation puts a toy in its place.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from shoal.blocks.span import Span
    from shoal.peer.wire import Buffer


class EngineFault(Exception):
    """The device failed (out of memory, driver error); the batch has no outputs."""


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` tokens of one lease for one engine step: rows `[offset, offset + count)` of `payload`.

    `position`: tokens of the lease already in its KV pages. `keep_rows`: how many of the last rows are to be returned.
    `length`: tokens of the sequence once its prompt is in (0: position + count).
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
    """The kept rows of one piece, in the piece's dtype. `finite`: no NaN or infinity among them."""

    payload: Buffer
    finite: bool


class Engine(Protocol):
    """What a peer needs of its device."""

    start: int
    stop: int
    width: int
    n_pages: int
    page_tokens: int

    async def run(self, batch: Sequence[Piece]) -> list[Output]:
        """Outputs in the batch's order. Errors: `EngineFault`."""
        ...

    def close(self) -> None:
        """End the device thread."""
        ...


class DeviceEngine:
    """`Engine` over a `Span`: a thread of its own, so that one process uses one device from one thread."""

    def __init__(self, span: Span, page_tokens: int) -> None:
        self.span = span
        self.start, self.stop = span.blocks.start, span.blocks.stop
        self.width = span.spec.hidden_size
        self.n_pages = span.kv.n_pages
        self.page_tokens = page_tokens
        self._work: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="shoal-device", daemon=True)
        self._thread.start()

    async def run(self, batch: Sequence[Piece]) -> list[Output]:
        """Outputs in the batch's order. Errors: `EngineFault`."""
        order = _Order(tuple(batch), asyncio.get_running_loop().create_future())
        self._work.put(order)
        return await order.outputs

    def close(self) -> None:
        """End the device thread once it is idle."""
        self._work.put(None)
        self._thread.join(timeout=30)

    def _serve(self) -> None:
        while (order := self._work.get()) is not None:
            order.settle(self._forward)

    def _forward(self, batch: tuple[Piece, ...]) -> list[Output]:
        """Pieces of one sub-range go through the span together."""
        outputs: dict[int, Output] = {}
        order = sorted(range(len(batch)), key=lambda index: (batch[index].start, batch[index].stop))
        for (start, stop), group in groupby(order, key=lambda index: (batch[index].start, batch[index].stop)):
            indices = list(group)
            pieces = [batch[index] for index in indices]
            outputs.update(zip(indices, self._forward_range(pieces, start, stop), strict=True))
        return [outputs[index] for index in range(len(batch))]

    def _forward_range(self, pieces: list[Piece], start: int, stop: int) -> list[Output]:
        import torch
        from shoal.blocks.span import Row

        inputs = [_to_tensor(piece, self.width) for piece in pieces]
        hidden = inputs[0] if len(inputs) == 1 else torch.cat([tensor.to(self.span.dtype) for tensor in inputs])
        rows = [Row(piece.pages, piece.position, piece.count, piece.length) for piece in pieces]
        result = self.span.forward(hidden.to(self.span.device, self.span.dtype), rows, start, stop)
        return _split(result, pieces)


@dataclass(frozen=True, slots=True)
class _Order:
    """A batch on its way to the device thread, and where its outputs are awaited."""

    batch: tuple[Piece, ...]
    outputs: asyncio.Future[list[Output]]

    def settle(self, forward: _Forward) -> None:
        """Run on the device thread; the loop learns the outcome."""
        loop = self.outputs.get_loop()
        try:
            outputs = forward(self.batch)
        except Exception as error:  # noqa: BLE001 - top of the device thread: the loop gets it as an EngineFault
            fault = EngineFault(f"{type(error).__name__}: {error}")
            fault.__cause__ = error
            loop.call_soon_threadsafe(self._fail, fault)
        else:
            loop.call_soon_threadsafe(self._succeed, outputs)

    def _succeed(self, outputs: list[Output]) -> None:
        if not self.outputs.done():
            self.outputs.set_result(outputs)

    def _fail(self, fault: EngineFault) -> None:
        if not self.outputs.done():
            self.outputs.set_exception(fault)


class _Forward(Protocol):
    def __call__(self, batch: tuple[Piece, ...]) -> list[Output]: ...


def _to_tensor(piece: Piece, width: int) -> torch.Tensor:
    """The piece's rows `[count, width]`, laid over the received bytes without a copy."""
    import torch

    flat = torch.frombuffer(piece.payload, dtype=getattr(torch, piece.dtype))
    return flat.view(-1, width)[piece.offset : piece.offset + piece.count]


def _split(result: torch.Tensor, pieces: list[Piece]) -> list[Output]:
    """Cut a ragged result `[T, width]` into each piece's kept rows, as bytes of the piece's dtype.

    One check for NaN and infinity covers the whole batch; only if it fails is each piece looked at.
    """
    import torch

    host = result.cpu()
    finite = bool(torch.isfinite(host.sum()))
    outputs, end = [], 0
    for piece in pieces:
        end += piece.count
        good = finite or bool(torch.isfinite(host[end - piece.count : end]).all())
        outputs.append(
            Output(_to_bytes(host[end - piece.keep_rows : end], piece.dtype, piece.keep_rows < len(host)), good)
        )
    return outputs


def _to_bytes(rows: torch.Tensor, dtype: str, shared: bool) -> Buffer:
    """The rows' memory in `dtype`. `shared`: copy them, so that keeping these rows does not keep all others."""
    import torch

    if not rows.shape[0]:
        return b""
    own = rows.to(getattr(torch, dtype), copy=shared).contiguous()
    return own.view(torch.uint8).numpy().data.cast("B")
