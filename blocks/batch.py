"""Owns the description of one ragged batch: which slots each row writes and reads; must not know modeling code.

Everything that all blocks of a span share is worked out here once per forward: slot indices, positions, windows, masks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch
from shoal.blocks.kv import PAGE_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

Made = TypeVar("Made")
Slots = np.ndarray[tuple[int], np.dtype[np.int64]]

_IN_PAGE = np.arange(PAGE_TOKENS)
ROW_BY_ROW = frozenset({"cpu"})  # kinds of device on which a call for each row costs less than gathering for one call


@dataclass(frozen=True, slots=True)
class Row:
    """`count` new tokens of one sequence, the first at `position`; `pages` hold positions 0 to the last, in order.

    `length`: tokens that the sequence will have when its prompt is in (0: position + count; `EACH_ITS_OWN`: for each
    token those up to it, as if they came one by one). Only rotary embeddings that depend on the length (longrope,
    dynamic) look at it: a prompt in chunks then equals the prompt in one piece.
    """

    pages: Sequence[int]
    position: int
    count: int
    length: int = 0

    @property
    def end(self) -> int:
        return self.position + self.count


@dataclass(frozen=True, slots=True)
class Read:
    """What one row reads: a slice of slots, or their indices, and the mask `[count, slots]` (None: all of them).

    `causal`: a mask is due, and it is the plain lower triangle of a square, which kernels know by themselves.
    """

    first: int
    count: int
    slots: slice | torch.Tensor
    mask: torch.Tensor | None
    causal: bool

    def gather(self, pool: torch.Tensor) -> torch.Tensor:
        """The row's part of `[1, heads, slots, width]`: a view if its pages are consecutive, else a copy."""
        if isinstance(self.slots, slice):
            return pool.narrow(2, self.slots.start, self.slots.stop - self.slots.start)
        return pool.index_select(2, self.slots)


@dataclass(frozen=True, slots=True)
class PaddedRead:
    """What one-token rows of about one length read at once: slot indices `[rows * width]` and the mask
    `[rows, 1, 1, width]`; `tokens [rows]`: which of the batch they are.

    Padding repeats a slot of the same row, so that no row ever touches numbers of another.
    """

    tokens: torch.Tensor
    slots: torch.Tensor
    mask: torch.Tensor


@dataclass(slots=True)
class Batch:
    """Rows of one forward. `write`: the slots of all new tokens, `[T]` or a slice."""

    rows: tuple[Row, ...]
    device: torch.device
    n_tokens: int
    write: slice | torch.Tensor
    _positions: torch.Tensor | None = None
    _reads: dict[int | None, tuple[Read, ...]] = field(default_factory=dict)
    _made: dict[Hashable, object] = field(default_factory=dict)

    @property
    def positions(self) -> torch.Tensor:
        """Positions of all tokens, `[1, T]`, made when they are first asked for."""
        if self._positions is None:
            ranges = [np.arange(row.position, row.end) for row in self.rows]
            self._positions = torch.from_numpy(np.concatenate(ranges)).to(self.device)[None]
        return self._positions

    @property
    def decodes_only(self) -> bool:
        """Whether every row has one token."""
        return self.n_tokens == len(self.rows)

    @property
    def gathers(self) -> bool:
        """Whether rows of one token are gathered and share a call."""
        return self.device.type not in ROW_BY_ROW and sum(row.count == 1 for row in self.rows) > 1

    def reads(self, window: int | None) -> tuple[Read, ...]:
        """One read per row, for blocks that see `window` tokens back (None: all)."""
        if window not in self._reads:
            firsts = accumulate((row.count for row in self.rows[:-1]), initial=0)
            self._reads[window] = tuple(
                _read(row, first, window, self.device) for row, first in zip(self.rows, firsts, strict=True)
            )
        return self._reads[window]

    def padded_reads(self, window: int | None, most_slots: int) -> tuple[PaddedRead, ...]:
        """Reads for all rows of a single token, each of at most `most_slots` slots if it is of more than one row."""
        return self.once(("padded", window, most_slots), lambda batch: _padded(batch, window, most_slots))

    def once(self, key: Hashable, make: Callable[[Batch], Made]) -> Made:
        """What `make` gives, made when a first block asks for it; `key` names it."""
        if key not in self._made:
            self._made[key] = make(self)
        return cast("Made", self._made[key])


def make_batch(rows: tuple[Row, ...], device: torch.device) -> Batch:
    """Describe rows that `check_rows` found good."""
    return Batch(rows, device, sum(row.count for row in rows), _write_of(rows, device))


def check_rows(rows: Sequence[Row], n_slots: int) -> tuple[Row, ...]:
    """The rows, if all of them fit a pool of `n_slots`; raises ValueError for one that does not."""
    held = tuple(rows)
    if not held:
        raise ValueError("a forward needs at least one row")
    for row in held:
        check_row(row, n_slots)
    return held


def _write_of(rows: tuple[Row, ...], device: torch.device) -> slice | torch.Tensor:
    if len(rows) == 1:
        return _source(rows[0].pages, rows[0].position, rows[0].end, device)
    slots = np.concatenate([slots_of(row.pages, row.position, row.end) for row in rows])
    return torch.from_numpy(slots).to(device)


def check_row(row: Row, n_slots: int) -> None:
    """Raise ValueError for a row that does not fit a pool of `n_slots`."""
    if row.count < 1 or row.position < 0:
        raise ValueError(f"a row needs at least one token and a position of 0 or more: {row.count} at {row.position}")
    if row.end > len(row.pages) * PAGE_TOKENS:
        raise ValueError(f"a row ends at position {row.end} but its {len(row.pages)} pages hold fewer")
    if min(row.pages) < 0 or max(row.pages) * PAGE_TOKENS >= n_slots:
        raise ValueError(f"a row names a page outside the pool of {n_slots // PAGE_TOKENS}")


def slots_of(pages: Sequence[int], start: int, stop: int) -> Slots:
    """Slot indices of positions `start` to `stop` of a sequence that holds `pages`."""
    first = start // PAGE_TOKENS
    held = np.asarray(pages[first : (stop - 1) // PAGE_TOKENS + 1], dtype=np.int64)
    slots = (held[:, None] * PAGE_TOKENS + _IN_PAGE).reshape(-1)
    return slots[start - first * PAGE_TOKENS : stop - first * PAGE_TOKENS]


def _source(pages: Sequence[int], start: int, stop: int, device: torch.device) -> slice | torch.Tensor:
    """The slots of positions `start` to `stop`: a slice where the pages that hold them are consecutive."""
    first, last = start // PAGE_TOKENS, (stop - 1) // PAGE_TOKENS
    offset = pages[first] - first
    if first == last or tuple(pages[first : last + 1]) == tuple(range(first + offset, last + offset + 1)):
        return slice(offset * PAGE_TOKENS + start, offset * PAGE_TOKENS + stop)
    return torch.from_numpy(slots_of(pages, start, stop)).to(device)


def _start(row: Row, window: int | None) -> int:
    """The first position that any of the row's tokens sees; a window of w shows a token itself and w - 1 before it."""
    return 0 if window is None else max(0, row.position - window + 1)


def _read(row: Row, first: int, window: int | None, device: torch.device) -> Read:
    start = _start(row, window)
    source = _source(row.pages, start, row.end, device)
    if row.count == 1:
        return Read(first, 1, source, mask=None, causal=False)
    if start == row.position == 0 and (window is None or row.end <= window):
        return Read(first, row.count, source, mask=None, causal=True)
    queries = torch.arange(row.position, row.end, device=device)[:, None]
    keys = torch.arange(start, row.end, device=device)[None]
    mask = keys <= queries
    if window is not None:
        mask &= keys > queries - window
    return Read(first, row.count, source, mask=mask, causal=False)


def _padded(batch: Batch, window: int | None, most_slots: int) -> tuple[PaddedRead, ...]:
    """Longest rows first. A group ends where another row would make its copies too many, or be mostly padding."""
    firsts = accumulate((row.count for row in batch.rows[:-1]), initial=0)
    single = [
        (first, slots_of(row.pages, _start(row, window), row.end))
        for row, first in zip(batch.rows, firsts, strict=True)
        if row.count == 1
    ]
    single.sort(key=lambda row: -len(row[1]))
    groups: list[list[tuple[int, Slots]]] = []
    for first, slots in single:
        width = len(groups[-1][0][1]) if groups else 0
        if 2 * len(slots) < width or not groups or (len(groups[-1]) + 1) * width > most_slots:
            groups.append([])
        groups[-1].append((first, slots))
    return tuple(_pad(group, batch.device) for group in groups)


def _pad(rows: list[tuple[int, Slots]], device: torch.device) -> PaddedRead:
    width = len(rows[0][1])
    table = np.stack([np.pad(slots, (0, width - len(slots)), constant_values=slots[0]) for _, slots in rows])
    mask = np.arange(width)[None] < np.array([len(slots) for _, slots in rows])[:, None]
    return PaddedRead(
        tokens=torch.tensor([first for first, _ in rows], device=device),
        slots=torch.from_numpy(table.reshape(-1)).to(device),
        mask=torch.from_numpy(mask).to(device)[:, None, None],
    )
