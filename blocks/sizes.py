"""Owns the sizes of steps that are captured as graphs, and how a step's integers are laid out. Integers only."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
from shoal.blocks.batch import Row, check_row, slots_of
from shoal.blocks.kernels.tiles import FIELDS, most_tiles, tile_tokens, write_tiles
from shoal.blocks.kv import PAGE_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from shoal.blocks.kernels.tiles import Ints

    Array = TypeVar("Array", Ints, torch.Tensor)

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
ROWS_BESIDE = (4, 16, 32, 48, 64, 96, 128, 256)  # fewer sizes of decodes where there are many of chunks
CHUNKS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # longer ones keep a GPU busy while they are launched
ROWS_OF_CHUNKS = (1, 2, 16, 128)
PAGES = (64, 512, 4096, 32768, 262144)  # of a row: 1,024 tokens, 8,192, and so on; few, each is a graph of its own

_KNOWN = 4096
# Triton compiles a kernel anew for a pointer or a stride that is not a multiple of 16: so all of a step's are.
_ALIGNED = 16 // 4
_TABLE_STEP = 16


@dataclass(frozen=True, slots=True)
class Size:
    """A step through blocks `[start, stop)`: up to `decodes` rows of one token with page tables of `pages`, then up to
    `chunk` tokens of other rows in `tiles` tiles, whose rows hold up to `held` pages together."""

    start: int
    stop: int
    decodes: int = 0
    pages: int = 0
    chunk: int = 0
    tiles: int = 0
    held: int = 0

    @property
    def tokens(self) -> int:
        return self.decodes + self.chunk


@dataclass(frozen=True, slots=True)
class Step:
    """Rows of a step in two parts: the one-token rows that lead it, and the rest."""

    decodes: tuple[Row, ...]
    chunks: tuple[Row, ...]


def split(rows: Sequence[Row]) -> Step:
    """A one-token row that comes after a chunk is a chunk as well."""
    leading = tuple(takewhile(lambda row: row.count == 1, rows))
    return Step(leading, tuple(rows[len(leading) :]))


def size_of(run: range, step: Step, group: int) -> Size | None:
    """The smallest size that holds a step; None if none does. `group`: query heads per KV head."""
    decodes, pages, chunk, tiles, held = 0, 0, 0, 0, 0
    if step.decodes:
        decodes = _at_least(ROWS_BESIDE if step.chunks else ROWS, len(step.decodes))
        pages = _at_least(PAGES, _pages(max(row.position for row in step.decodes) + 1))
    if step.chunks:
        chunk = _at_least(CHUNKS, sum(row.count for row in step.chunks))
        rows = _at_least(ROWS_OF_CHUNKS, len(step.chunks))
        tiles = most_tiles(chunk, rows, tile_tokens(group, chunk)) if min(chunk, rows) > 0 else -1
        held = _at_least(PAGES, sum(_pages(row.end) for row in step.chunks))
    if -1 in (decodes, pages, chunk, tiles, held):
        return None
    return Size(run.start, run.stop, decodes, pages, chunk, tiles, held)


def exact_size(run: range, step: Step, group: int) -> Size:
    """The size of a step as it is, without padding but that of page tables."""
    chunk = sum(row.count for row in step.chunks)
    each = tile_tokens(group, chunk) if chunk else 1
    pages = _up_to(_TABLE_STEP, max((_pages(row.end) for row in step.decodes), default=0))
    return Size(
        run.start, run.stop, len(step.decodes), pages, chunk,
        sum(-(-row.count // each) for row in step.chunks), sum(_pages(row.end) for row in step.chunks),
    )  # fmt: skip


class Layout:
    """Where a step's integers lie in one array: positions and slots of all tokens, ends and page tables of decodes,
    tiles with their pages, each from a multiple of 16 bytes on. `length`: of all five together."""

    def __init__(self, size: Size) -> None:
        self.size = size
        tiles = size.tiles * FIELDS + size.held
        lengths = (size.tokens, size.tokens, size.decodes, size.decodes * size.pages, tiles)
        starts = accumulate((_up_to(_ALIGNED, length) for length in lengths[:-1]), initial=0)
        self._parts = tuple(slice(start, start + length) for start, length in zip(starts, lengths, strict=True))
        self.length = self._parts[-1].stop

    def cut(self, ints: Array) -> tuple[Array, Array, Array, Array, Array]:
        """The five parts of an array or a tensor of `length`; tables as `[decodes, pages]`."""
        positions, slots, ends, table, tiles = (ints[part] for part in self._parts)
        return positions, slots, ends, table.reshape(self.size.decodes, self.size.pages), tiles

    def write(self, parts: tuple[Ints, Ints, Ints, Ints, Ints], step: Step, group: int, scratch_page: int) -> None:
        """Describe `step` in `parts` (see `cut`); what is padding sees nothing, and goes to the scratch page."""
        positions, slots, ends, table, tiles = parts
        n, size, nowhere = len(step.decodes), self.size, scratch_page * PAGE_TOKENS
        if n < size.decodes:
            positions[n : size.decodes], slots[n : size.decodes], ends[n:] = 0, nowhere, 0
        if n:
            positions[:n] = at = np.array([row.position for row in step.decodes], dtype=np.int32)
            ends[:n] = at + 1
            for line, row in zip(table, step.decodes, strict=False):
                pages = row.pages[: len(line)]
                line[: len(pages)] = pages
            slots[:n] = table[np.arange(n), at // PAGE_TOKENS] * PAGE_TOKENS + at % PAGE_TOKENS
        if step.chunks:
            stop = _write_chunks(positions, slots, size.decodes, step.chunks)
            if stop < size.tokens:
                positions[stop:], slots[stop:] = 0, nowhere
            write_tiles(tiles, step.chunks, tile_tokens(group, size.chunk), size.tiles)


def _write_chunks(positions: Ints, slots: Ints, at: int, chunks: Sequence[Row]) -> int:
    """From token `at` on; returns where they end."""
    for row in chunks:
        stop = at + row.count
        positions[at:stop] = np.arange(row.position, row.end)
        slots[at:stop] = slots_of(row.pages, row.position, row.end)
        at = stop
    return at


class PageArrays:
    """Rows with their pages as arrays of integers that lie inside a pool, made once for each tuple of pages.

    A lease's pages are the same tuple for many steps: reading it number by number each time would be a step's largest
    cost in Python.
    """

    def __init__(self, n_pages: int) -> None:
        self._n_pages = n_pages
        self._known: dict[int, tuple[Sequence[int], Ints]] = {}

    def of(self, rows: Sequence[Row]) -> tuple[Row, ...]:
        """The same rows with arrays for pages; raises ValueError for a row that does not fit."""
        if not rows:
            raise ValueError("a forward needs at least one row")
        return tuple(Row(cast("Sequence[int]", self._array(row)), row.position, row.count, row.length) for row in rows)

    def _array(self, row: Row) -> Ints:
        pages, array = self._known.get(id(row.pages), (None, None))
        if pages is not row.pages or array is None:
            check_row(row, self._n_pages * PAGE_TOKENS)
            array = np.array(row.pages, dtype=np.int32)
            if isinstance(row.pages, (tuple, range)):  # kept alive here, so that no other can have its identity
                if len(self._known) >= _KNOWN:
                    self._known.clear()
                self._known[id(row.pages)] = row.pages, array
        elif row.count < 1 or row.position < 0 or row.end > len(array) * PAGE_TOKENS:
            check_row(row, self._n_pages * PAGE_TOKENS)
        return array


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE_TOKENS)


def _up_to(step: int, number: int) -> int:
    """The next multiple of `step`."""
    return -(-number // step) * step


def _at_least(sizes: Sequence[int], wanted: int) -> int:
    """The smallest size that is enough, or -1."""
    index = bisect_left(sizes, wanted)
    return sizes[index] if index < len(sizes) else -1
