"""Page-locked host memory on both sides of a GPU, used again from step to step. Knows no pieces and no leases.

How it is seen is kept as well: steps of a size come again, and each view of a tensor costs a step that the device, or
whoever waits for its answer, is waiting for.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from shoal.blocks.formats import row_bytes
from shoal.blocks.kernels import has_kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Flags: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

_KNOWN = 256
_ALIGNED = 64  # what parts of the memory begin at multiples of, in bytes


class Inbox:
    """Memory as rows of any form; the span's own, by `room`, where it has the form and is large enough."""

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


@dataclass(frozen=True, slots=True)
class _Letter:
    """Rows on their way out, as 16-bit words (if they can be cut so), and as bytes; where each row of the result goes
    (-1: nowhere), and whether its numbers are finite; the last two as tensors and as arrays of them."""

    rows: torch.Tensor
    words: torch.Tensor | None
    data: memoryview
    places: torch.Tensor
    finite: torch.Tensor
    to: np.ndarray[Any, np.dtype[np.int32]]
    fine: np.ndarray[Any, np.dtype[np.int32]]


class Outbox:
    """What steps on `device` gave, fetched for whoever sends it; results come in `dtype`."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._kernels = device, has_kernels(device, dtype)
        self._memory, self._size = _Locked(), 0
        self._seen: dict[tuple[torch.dtype, int, int, int], _Letter] = {}

    def fetch(
        self, result: torch.Tensor, sent: torch.Tensor, stretches: Sequence[tuple[int, int]]
    ) -> tuple[torch.Tensor, memoryview, Flags | None]:
        """Rows `[start, stop)` of all `stretches` of `sent`, one after the other, as a tensor on the host and as its
        bytes; and which rows of `result [T, H]` are finite in all their numbers (None: all). Both are void with the
        next call. Waits for the device."""
        count = sum(stop - start for start, stop in stretches)
        letter = self._letter(sent, count, len(result))
        if self._kernels and letter.words is not None:
            fine = self._by_kernel(letter, letter.words, result, sent, stretches)
        else:
            fine = self._by_copies(letter, result, sent, stretches)
        return letter.rows, letter.data, fine

    def _by_kernel(
        self,
        letter: _Letter,
        words: torch.Tensor,
        result: torch.Tensor,
        sent: torch.Tensor,
        stretches: Sequence[tuple[int, int]],
    ) -> Flags | None:
        from shoal.blocks.kernels.send import send

        letter.to.fill(-1)
        filled = 0
        for start, stop in stretches:
            letter.to[start:stop] = np.arange(filled, filled + stop - start)
            filled += stop - start
        send(result, sent.view(torch.int16), letter.places, words, letter.finite)
        torch.cuda.current_stream(self._device).synchronize()
        return None if letter.fine.all() else letter.fine.astype(np.bool_)

    def _by_copies(
        self, letter: _Letter, result: torch.Tensor, sent: torch.Tensor, stretches: Sequence[tuple[int, int]]
    ) -> Flags | None:
        total = result.sum(dtype=torch.float32)
        letter.finite[:1].view(torch.float32).copy_(total.view(1), non_blocking=True)
        filled = 0
        for start, stop in stretches:
            letter.rows[filled : filled + stop - start].copy_(sent[start:stop], non_blocking=True)
            filled += stop - start
        torch.cuda.current_stream(self._device).synchronize()
        return None if isfinite(letter.fine[:1].view(np.float32)[0]) else finite_rows(result)

    def _letter(self, sent: torch.Tensor, count: int, tokens: int) -> _Letter:
        """In the same memory each time."""
        key = sent.dtype, sent.shape[1], count, tokens
        if key not in self._seen:
            row = sent.shape[1] * sent.element_size()
            numbers = -(-4 * tokens // _ALIGNED) * _ALIGNED
            size = 2 * numbers + count * row
            if size > self._size or len(self._seen) >= _KNOWN:
                self._size = max(size, self._size)
                self._seen.clear()  # the memory may lie elsewhere now
            memory = self._memory.take(size)
            places, finite = (memory[at : at + 4 * tokens].view(torch.int32) for at in (0, numbers))
            data = memory[2 * numbers :]
            rows = data.view(sent.dtype).view(count, sent.shape[1])
            words = None if row % 2 else rows.view(torch.int16)
            self._seen[key] = _Letter(rows, words, data.numpy().data, places, finite, places.numpy(), finite.numpy())
        return self._seen[key]


class _Locked:
    """Memory that grows as needed."""

    def __init__(self) -> None:
        self._data = torch.empty(0, dtype=torch.uint8)

    def take(self, n_bytes: int) -> torch.Tensor:
        """So many bytes `[n]`, the same ones each time."""
        if n_bytes > len(self._data):
            self._data = torch.empty(max(n_bytes, 2 * len(self._data)), dtype=torch.uint8, pin_memory=True)
        return self._data[:n_bytes]


def finite_rows(result: torch.Tensor) -> Flags:
    """Which rows of `[T, H]` are finite in all their numbers."""
    flags: Flags = torch.isfinite(result).all(1).cpu().numpy()
    return flags
