"""Hidden states between messages' bytes and a span's device, in as few copies as there can be. Knows no leases.

On CUDA both ways lead through page-locked memory that is used again from step to step: one copy in, the kept rows and
one number out, and one wait, at the end. Elsewhere received bytes become tensors, and results bytes, where they lie.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from shoal.peer.engine import Output
from shoal.peer.wire import DTYPE_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.peer.engine import Piece
    from shoal.peer.wire import Buffer

_ALIGNED = 64  # bytes before the rows, for the number that says whether all of them are finite


class Transfer:
    """For one device thread; `width` is the model's hidden size."""

    def __init__(self, device: torch.device, width: int) -> None:
        self._device, self._width = device, width
        self._locked = device.type == "cuda"
        self._inbox, self._outbox = _Locked(), _Locked()

    def load(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """The pieces' rows, one after another, as a host tensor `[T, width]`.

        On CUDA it is void with the next call; the copy to the device must have been made by then.
        """
        if len({piece.dtype for piece in pieces}) > 1:
            wide = [self._view(piece).to(torch.float32) for piece in pieces]
            return torch.cat(wide)
        if self._locked:
            return self._load_locked(pieces)
        return self._view(pieces[0]) if len(pieces) == 1 else torch.cat([self._view(piece) for piece in pieces])

    def unload(self, result: torch.Tensor, pieces: Sequence[Piece]) -> list[Output]:
        """Cut a ragged result `[T, width]` on the device into each piece's kept rows. Waits for the device."""
        result = self._as_sent(result, pieces)
        ends = [*accumulate(piece.count for piece in pieces)]
        starts = [end - piece.keep_rows for end, piece in zip(ends, pieces, strict=True)]
        if self._locked:
            host, finite, starts = self._fetch(result, starts, pieces)
        else:
            host, finite = result.cpu(), bool(torch.isfinite(result.sum(dtype=torch.float32)))
        good = [finite or _finite(result[end - piece.count : end]) for end, piece in zip(ends, pieces, strict=True)]
        payloads = self._payloads(host, starts, pieces)
        return [Output(payload, fine) for payload, fine in zip(payloads, good, strict=True)]

    def _load_locked(self, pieces: Sequence[Piece]) -> torch.Tensor:
        dtype: torch.dtype = getattr(torch, pieces[0].dtype)
        row = self._width * dtype.itemsize
        data = self._inbox.take(row * sum(piece.count for piece in pieces))
        room, at = data.numpy().data, 0
        for piece in pieces:
            size = piece.count * row
            payload = memoryview(piece.payload).cast("B")
            room[at : at + size] = payload[piece.offset * row : piece.offset * row + size]
            at += size
        return data.view(dtype).view(-1, self._width)

    def _view(self, piece: Piece) -> torch.Tensor:
        """The piece's rows `[count, width]`, laid over the received bytes without a copy."""
        flat = torch.frombuffer(piece.payload, dtype=getattr(torch, piece.dtype))
        return flat.view(-1, self._width)[piece.offset : piece.offset + piece.count]

    def _as_sent(self, result: torch.Tensor, pieces: Sequence[Piece]) -> torch.Tensor:
        """In the pieces' dtype, if they have one in common: the device converts quicker."""
        dtypes = {piece.dtype for piece in pieces}
        return result.to(getattr(torch, dtypes.pop())) if len(dtypes) == 1 else result

    def _fetch(
        self, result: torch.Tensor, starts: list[int], pieces: Sequence[Piece]
    ) -> tuple[torch.Tensor, bool, list[int]]:
        """The kept rows on the host, whether all rows are finite, and where each piece's rows begin on the host."""
        row, kept = result.shape[1] * result.element_size(), sum(piece.keep_rows for piece in pieces)
        data = self._outbox.take(_ALIGNED + kept * row)
        flag, host = data[:4].view(torch.float32), data[_ALIGNED:].view(result.dtype).view(-1, result.shape[1])
        flag.copy_(result.sum(dtype=torch.float32).view(1), non_blocking=True)
        at = 0
        for start, stop in _stretches(starts, pieces):
            host[at : at + stop - start].copy_(result[start:stop], non_blocking=True)
            at += stop - start
        torch.cuda.current_stream(self._device).synchronize()
        return host, bool(torch.isfinite(flag)), [0, *accumulate(piece.keep_rows for piece in pieces)][:-1]

    def _payloads(self, host: torch.Tensor, starts: list[int], pieces: Sequence[Piece]) -> list[Buffer]:
        """Each piece's rows as bytes of its dtype. Rows that share memory with others are copied, so that keeping them
        does not keep all."""
        views = {dtype: _bytes(host.to(getattr(torch, dtype))) for dtype in {piece.dtype for piece in pieces}}
        alone = len(pieces) == 1 and not self._locked and pieces[0].keep_rows == len(host)
        if alone:
            return [views[pieces[0].dtype]]
        row = {dtype: self._width * DTYPE_BYTES[dtype] for dtype in views}
        return [
            bytes(views[piece.dtype][start * row[piece.dtype] : (start + piece.keep_rows) * row[piece.dtype]])
            for start, piece in zip(starts, pieces, strict=True)
        ]


class _Locked:
    """Page-locked host memory that grows as needed."""

    def __init__(self) -> None:
        self._data = torch.empty(0, dtype=torch.uint8)

    def take(self, n_bytes: int) -> torch.Tensor:
        """So many bytes `[n]`, the same ones each time."""
        if n_bytes > len(self._data):
            self._data = torch.empty(max(n_bytes, 2 * len(self._data)), dtype=torch.uint8, pin_memory=True)
        return self._data[:n_bytes]


def _stretches(starts: Sequence[int], pieces: Sequence[Piece]) -> list[tuple[int, int]]:
    """Rows to be kept as (start, stop), neighbours joined."""
    joined: list[tuple[int, int]] = []
    for start, piece in zip(starts, pieces, strict=True):
        stop = start + piece.keep_rows
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        elif stop > start:
            joined.append((start, stop))
    return joined


def _finite(rows: torch.Tensor) -> bool:
    return bool(torch.isfinite(rows).all())


def _bytes(host: torch.Tensor) -> memoryview:
    """A host tensor's memory."""
    if not host.numel():
        return memoryview(b"")
    return host.contiguous().view(torch.uint8).numpy().data.cast("B")
