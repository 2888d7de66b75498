"""Who holds which KV page. Integers only: no tensors, no clock, no sessions.

Free pages are kept as runs of consecutive ids: consecutive pages can be read as a view, without a gather. Who takes
pages says how many more may follow; others then leave those alone while there is room elsewhere. A page may have
several holders, who only read it; it is free when the last one gives it back.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class PageAllocator:
    """Hands out page ids `0 .. n_pages - 1`; free + used = all, always (`check`)."""

    def __init__(self, n_pages: int) -> None:
        self.n_pages = n_pages
        self._runs: list[tuple[int, int]] = [(0, n_pages)] if n_pages else []  # (first, length), sorted, never touching
        self._holders: dict[int, int] = {}  # page -> how many hold it
        self._room: dict[int, int] = {}  # last page of a holder -> how many pages behind it are left for its growth

    @property
    def free(self) -> int:
        """Number of free pages."""
        return self.n_pages - len(self._holders)

    def holders(self, page: int) -> int:
        """How many hold a page; 0 if it is free."""
        return self._holders.get(page, 0)

    def allocate(self, count: int, after: int | None = None, room: int = 0) -> tuple[int, ...] | None:
        """`count` page ids; None (nothing taken) if too few are free.

        They follow page `after` if those are free, or are consecutive if a run is long enough. `room`: how many more
        may follow them one day.
        """
        if count > self.free:
            return None
        pages = self._take_behind(after, count) if count and after is not None else []
        while len(pages) < count:
            pages += self._take(count - len(pages), room)
        self._holders.update(dict.fromkeys(pages, 1))
        if room and pages:
            self._room[pages[-1]] = room
        return tuple(pages)

    def share(self, pages: Iterable[int]) -> None:
        """One more holder for pages in use. Errors: `ValueError` for a page that is not."""
        for page in pages:
            if page not in self._holders:
                raise ValueError("a page was shared that is not in use")
            self._holders[page] += 1

    def release(self, pages: tuple[int, ...]) -> None:
        """One holder gives pages back. Errors: `ValueError` if one of them is not in use."""
        if len(set(pages)) != len(pages) or not self._holders.keys() >= set(pages):
            raise ValueError("a page was released that is not in use")
        freed = []
        for page in pages:
            self._holders[page] -= 1
            if not self._holders[page]:
                del self._holders[page]
                self._room.pop(page, None)
                freed.append(page)
        for first, length in _runs(sorted(freed)):
            self._join(first, length)

    def check(self) -> None:
        """Conservation: every page is used or in exactly one run. Errors: `ValueError`."""
        free = [page for first, length in self._runs for page in range(first, first + length)]
        if sorted([*free, *self._holders]) != list(range(self.n_pages)) or not all(self._holders.values()):
            raise ValueError("pages were lost or doubled")

    def _take_behind(self, after: int, count: int) -> list[int]:
        """Up to `count` pages that follow `after`."""
        self._room.pop(after, None)
        index = bisect_left(self._runs, (after + 1, 0))
        if index == len(self._runs) or self._runs[index][0] != after + 1:
            return []
        return self._cut(index, after + 1, min(count, self._runs[index][1]))

    def _take(self, count: int, room: int) -> list[int]:
        """Up to `count` pages from the smallest stretch that fits them with `room`, else from the largest; from others'
        room, at its far end, only if nothing else holds as many."""
        stretches = [(length - kept, index, kept) for index, length, kept in self._stretches()]
        wanted = count + room
        length, index, kept = max(stretches, key=lambda stretch: (min(stretch[0], wanted), -stretch[0]))
        if length >= count:
            return self._cut(index, self._runs[index][0] + kept, count)
        index = max(range(len(self._runs)), key=lambda index: self._runs[index][1])
        first, length = self._runs[index]
        taken = min(count, length)
        return self._cut(index, first + length - taken, taken)

    def _stretches(self) -> Iterator[tuple[int, int, int]]:
        """(index, length, pages at its start that are left for somebody's growth) of each run."""
        for index, (first, length) in enumerate(self._runs):
            yield index, length, min(length, self._room.get(first - 1, 0))

    def _cut(self, index: int, start: int, count: int) -> list[int]:
        """Take `count` pages from `start` on out of a run."""
        first, length = self._runs[index]
        rest = ((first, start - first), (start + count, first + length - start - count))
        self._runs[index : index + 1] = [run for run in rest if run[1]]
        return list(range(start, start + count))

    def _join(self, first: int, length: int) -> None:
        """Put pages back, merging them with the runs that they touch."""
        index = bisect_left(self._runs, (first, 0))
        if index < len(self._runs) and self._runs[index][0] == first + length:
            length += self._runs.pop(index)[1]
        if index and sum(self._runs[index - 1]) == first:
            before = self._runs.pop(index - 1)
            first, length = before[0], before[1] + length
        insort(self._runs, (first, length))


def _runs(pages: list[int]) -> Iterator[tuple[int, int]]:
    """Sorted pages as (first, length) of consecutive ones."""
    first = 0
    for index in range(1, len(pages) + 1):
        if index == len(pages) or pages[index] != pages[index - 1] + 1:
            yield pages[first], index - first
            first = index
