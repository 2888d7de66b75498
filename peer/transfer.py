"""Hidden states between messages' bytes and a span's device, in as few copies as there can be. Knows no leases.

On CUDA both ways lead through page-locked memory that is used again from step to step: one copy in, the kept rows and
one number out, and one wait, at the end. Elsewhere received bytes become tensors, and results bytes, where they lie.
"""

from __future__ import annotations

from itertools import accumulate
from math import isfinite
from typing import TYPE_CHECKING

import torch
from shoal.blocks.activations import pack, to_bytes, unpack, view_bytes
from shoal.blocks.formats import row_bytes
from shoal.peer.engine import Output

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal.peer.engine import Piece
    from shoal.peer.wire import Buffer

_KNOWN = 256
_ALIGNED = 64  # bytes before the rows, for the number that says whether all of them are finite


class Transfer:
    """For one device thread; `width` is the model's hidden size, `room` as `Span.room`."""

    def __init__(self, device: torch.device, width: int, room: Callable[[int], torch.Tensor | None]) -> None:
        self._device, self._width = device, width
        self._locked = device.type == "cuda"
        self._inbox, self._outbox = _Inbox(width, room), _Locked()
        self._rows: dict[str, tuple[memoryview, torch.Tensor]] = {}  # one row of each form, and the same as a tensor

    def load(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """The pieces' rows, one after another, as floats `[T, width]`, on the host or on the device.

        It may be void with the next call; a copy must have been made by then.
        """
        if len({piece.dtype for piece in pieces}) > 1:
            return torch.cat([self._unpacked(piece).to(torch.float32) for piece in pieces])
        if self._locked:
            return self._load_locked(pieces)
        if len(pieces) == 1:
            return self._unpacked(pieces[0]) if pieces[0].count > 1 else self._load_row(pieces[0])
        return torch.cat([self._unpacked(piece) for piece in pieces])

    def unload(self, result: torch.Tensor, pieces: Sequence[Piece]) -> list[Output]:
        """Cut a ragged result `[T, width]` on the device into each piece's kept rows. Waits for the device."""
        if len(pieces) == 1 and not self._locked and pieces[0].keep_rows == len(result):
            payload = to_bytes(pack(result, pieces[0].dtype).cpu())
            return [Output(payload, isfinite(result.sum(dtype=torch.float32).item()) or _finite(result))]
        sent = self._as_sent(result, pieces)
        ends = [*accumulate(piece.count for piece in pieces)]
        starts = [end - piece.keep_rows for end, piece in zip(ends, pieces, strict=True)]
        total = result.sum(dtype=torch.float32)
        if self._locked:
            host, finite, starts = self._fetch(sent, total, starts, pieces)
        else:
            host, finite = sent.cpu(), isfinite(total.item())
        good = [finite or _finite(result[end - piece.count : end]) for end, piece in zip(ends, pieces, strict=True)]
        payloads = self._payloads(host, starts, pieces)
        return [Output(payload, fine) for payload, fine in zip(payloads, good, strict=True)]

    def _load_row(self, piece: Piece) -> torch.Tensor:
        """A row alone, copied to where such a row always lies: no tensor has to be made for it."""
        size = row_bytes(piece.dtype, self._width)
        if piece.dtype not in self._rows:
            memory = bytearray(size)
            self._rows[piece.dtype] = memoryview(memory), view_bytes(memory, piece.dtype, self._width)
        room, row = self._rows[piece.dtype]
        room[:] = memoryview(piece.payload).cast("B")[piece.offset * size : (piece.offset + 1) * size]
        return unpack(row, piece.dtype, self._width)

    def _load_locked(self, pieces: Sequence[Piece]) -> torch.Tensor:
        form, row = pieces[0].dtype, row_bytes(pieces[0].dtype, self._width)
        room, rows = self._inbox.rows(form, sum(piece.count for piece in pieces))
        at = 0
        for piece in pieces:
            size = piece.count * row
            payload = memoryview(piece.payload).cast("B")
            room[at : at + size] = payload[piece.offset * row : piece.offset * row + size]
            at += size
        if form == "int8":
            return unpack(rows.to(self._device, non_blocking=True), form, self._width)
        return rows

    def _unpacked(self, piece: Piece) -> torch.Tensor:
        """The piece's rows `[count, width]`; floats are laid over the received bytes without a copy."""
        rows = view_bytes(piece.payload, piece.dtype, self._width)
        if piece.count < len(rows):
            rows = rows[piece.offset : piece.offset + piece.count]
        return unpack(rows, piece.dtype, self._width)

    def _as_sent(self, result: torch.Tensor, pieces: Sequence[Piece]) -> torch.Tensor:
        """In the pieces' form, if they have one in common: the device converts quicker. A host does not pack rows to
        int8 before it is known which are kept."""
        forms = {piece.dtype for piece in pieces}
        early = len(forms) == 1 and (self._locked or "int8" not in forms)
        return pack(result, forms.pop()) if early else result

    def _fetch(
        self, sent: torch.Tensor, total: torch.Tensor, starts: list[int], pieces: Sequence[Piece]
    ) -> tuple[torch.Tensor, bool, list[int]]:
        """The kept rows on the host, whether all rows are finite, and where each piece's rows begin on the host."""
        row, kept = sent.shape[1] * sent.element_size(), sum(piece.keep_rows for piece in pieces)
        data = self._outbox.take(_ALIGNED + kept * row)
        flag, host = data[:4].view(torch.float32), data[_ALIGNED:].view(sent.dtype).view(-1, sent.shape[1])
        flag.copy_(total.view(1), non_blocking=True)
        at = 0
        for start, stop in _stretches(starts, pieces):
            host[at : at + stop - start].copy_(sent[start:stop], non_blocking=True)
            at += stop - start
        torch.cuda.current_stream(self._device).synchronize()
        return host, isfinite(flag.item()), [0, *accumulate(piece.keep_rows for piece in pieces)][:-1]

    def _payloads(self, host: torch.Tensor, starts: list[int], pieces: Sequence[Piece]) -> list[Buffer]:
        """Each piece's rows as bytes of its form. Rows that share memory with others are copied, so that keeping them
        does not keep all."""
        packed = host.dtype is torch.uint8
        forms = {piece.dtype for piece in pieces if packed or piece.dtype != "int8"}
        views = {form: to_bytes(host if packed else pack(host, form)) for form in forms}
        row = {form: row_bytes(form, self._width) for form in forms}
        return [
            bytes(views[piece.dtype][start * row[piece.dtype] : (start + piece.keep_rows) * row[piece.dtype]])
            if piece.dtype in views
            else to_bytes(pack(host[start : start + piece.keep_rows], piece.dtype))
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


class _Inbox:
    """Page-locked memory as rows of any form; the span's own where it has the form and is large enough. How it is seen
    is kept: steps of a size come again, and each view of a tensor costs a step that the device is waiting for."""

    def __init__(self, width: int, room: Callable[[int], torch.Tensor | None]) -> None:
        self._width, self._room, self._memory, self._size = width, room, _Locked(), 0
        self._seen: dict[tuple[str, int], tuple[memoryview, torch.Tensor]] = {}

    def rows(self, form: str, count: int) -> tuple[memoryview, torch.Tensor]:
        """The same memory as bytes to write to, and as `[count, width]` floats or `[count, bytes]` of packed rows."""
        if (form, count) not in self._seen:
            rows = self._room(count)
            if rows is None or str(rows.dtype) != f"torch.{form}":
                rows = self._own(form, count)
            if len(self._seen) >= _KNOWN:
                self._seen.clear()
            self._seen[form, count] = rows.view(torch.uint8).view(-1).numpy().data, rows
        return self._seen[form, count]

    def _own(self, form: str, count: int) -> torch.Tensor:
        size = count * row_bytes(form, self._width)
        if size > self._size:
            self._size = size
            self._seen.clear()  # the memory may lie elsewhere now
        data = self._memory.take(size)
        return (data if form == "int8" else data.view(getattr(torch, form))).view(count, -1)


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
