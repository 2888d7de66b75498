"""Hidden states between messages' bytes and a span's device, in as few copies as there can be. Knows no leases.

On CUDA both ways lead through page-locked memory (`locked`), with one wait, at the end. Elsewhere received bytes become
tensors, and results bytes, where they lie.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from math import isfinite
from typing import TYPE_CHECKING

import torch
from shoal.blocks.activations import pack, to_bytes, unpack, view_bytes
from shoal.blocks.formats import row_bytes
from shoal.peer.engine import Output
from shoal.peer.locked import Inbox, Outbox, finite_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.blocks.span import Span
    from shoal.peer.engine import Piece
    from shoal.peer.locked import Flags
    from shoal.peer.wire import Buffer


class Transfer:
    """For one span, and whoever runs it: one thread at a time."""

    def __init__(self, span: Span) -> None:
        self._device, self._width = span.device, span.spec.hidden_size
        cuda = span.device.type == "cuda"
        self._inbox = Inbox(self._width, span.room) if cuda else None
        self._outbox = Outbox(span.device, span.dtype) if cuda else None
        self._rows: dict[str, tuple[memoryview, torch.Tensor]] = {}  # one row of each form, and the same as a tensor

    def load(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """The pieces' rows, one after another, as floats `[T, width]`, on the host or on the device.

        It may be void with the next call; a copy must have been made by then.
        """
        if len({piece.dtype for piece in pieces}) > 1:
            return torch.cat([self._unpacked(piece).to(torch.float32) for piece in pieces])
        if self._inbox is not None:
            return self._load_locked(self._inbox, pieces)
        if len(pieces) == 1:
            return self._unpacked(pieces[0]) if pieces[0].count > 1 else self._load_row(pieces[0])
        return torch.cat([self._unpacked(piece) for piece in pieces])

    def unload(self, result: torch.Tensor, pieces: Sequence[Piece]) -> list[Output]:
        """Cut a ragged result `[T, width]` on the device into each piece's kept rows. Waits for the device."""
        if len(pieces) == 1 and self._outbox is None and pieces[0].keep_rows == len(result):
            payload = to_bytes(pack(result, pieces[0].dtype).cpu())
            return [Output(payload, _all_finite(result))]
        ends = [*accumulate(piece.count for piece in pieces)]
        starts = [end - piece.keep_rows for end, piece in zip(ends, pieces, strict=True)]
        if self._outbox is not None:
            payloads, fine = self._fetch(self._outbox, result, starts, pieces)
        else:
            payloads = self._payloads(self._as_sent(result, pieces).cpu(), starts, pieces)
            fine = None if _all_finite(result) else finite_rows(result)
        good = [
            fine is None or bool(fine[end - piece.count : end].all()) for end, piece in zip(ends, pieces, strict=True)
        ]
        return [Output(payload, finite) for payload, finite in zip(payloads, good, strict=True)]

    def _load_row(self, piece: Piece) -> torch.Tensor:
        """A row alone, copied to where such a row always lies: no tensor has to be made for it."""
        size = row_bytes(piece.dtype, self._width)
        if piece.dtype not in self._rows:
            memory = bytearray(size)
            self._rows[piece.dtype] = memoryview(memory), view_bytes(memory, piece.dtype, self._width)
        room, row = self._rows[piece.dtype]
        room[:] = memoryview(piece.payload).cast("B")[piece.offset * size : (piece.offset + 1) * size]
        return unpack(row, piece.dtype, self._width)

    def _load_locked(self, inbox: Inbox, pieces: Sequence[Piece]) -> torch.Tensor:
        form, row = pieces[0].dtype, row_bytes(pieces[0].dtype, self._width)
        room, rows = inbox.rows(form, sum(piece.count for piece in pieces))
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
        early = len(forms) == 1 and (self._outbox is not None or "int8" not in forms)
        return pack(result, forms.pop()) if early else result

    def _fetch(
        self, outbox: Outbox, result: torch.Tensor, starts: list[int], pieces: Sequence[Piece]
    ) -> tuple[list[Buffer], Flags | None]:
        """Each piece's rows as bytes of its form, and which rows of the result are finite (None: all)."""
        at = [0, *accumulate(piece.keep_rows for piece in pieces)]
        rows, data, fine = outbox.fetch(result, self._as_sent(result, pieces), _stretches(starts, pieces))
        if any(piece.dtype != pieces[0].dtype for piece in pieces):
            return self._payloads(rows, at[:-1], pieces), fine
        row = row_bytes(pieces[0].dtype, self._width)
        return [bytes(data[start * row : stop * row]) for start, stop in pairwise(at)], fine

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


def _all_finite(result: torch.Tensor) -> bool:
    """A sum is quicker than a look at each number, but may overflow where all of them are finite."""
    return isfinite(result.sum(dtype=torch.float32).item()) or bool(torch.isfinite(result).all())
