"""Who holds which KV page. Integers only: no tensors, no clock, no sessions.

Free pages are kept as runs of consecutive ids, and a request is served from the smallest run that fits: consecutive
pages can be read as a view, without a gather. When no run fits, the request is spread over several.
"""

from __future__ import annotations

from bisect import bisect_left, insort


class PageAllocator:
    """Hands out page ids `0 .. n_pages - 1`; free + used = all, always (`check`)."""

    def __init__(self, n_pages: int) -> None:
        self.n_pages = n_pages
        self._runs: list[tuple[int, int]] = [(0, n_pages)] if n_pages else []  # (first, length), sorted, never touching
        self._used: set[int] = set()

    @property
    def free(self) -> int:
        """Number of free pages."""
        return self.n_pages - len(self._used)

    def allocate(self, count: int) -> tuple[int, ...] | None:
        """`count` page ids, consecutive if a free run is long enough; None (nothing taken) if too few are free."""
        if count > self.free:
            return None
        pages: list[int] = []
        while len(pages) < count:
            pages += self._cut(count - len(pages))
        self._used.update(pages)
        return tuple(pages)

    def release(self, pages: tuple[int, ...]) -> None:
        """Give pages back. Errors: `ValueError` if one of them is not in use."""
        if len(set(pages)) != len(pages) or not self._used.issuperset(pages):
            raise ValueError("a page was released that is not in use")
        self._used.difference_update(pages)
        for page in pages:
            self._join(page)

    def check(self) -> None:
        """Conservation: every page is used or in exactly one run. Errors: `ValueError`."""
        free = [page for first, length in self._runs for page in range(first, first + length)]
        if sorted([*free, *self._used]) != list(range(self.n_pages)):
            raise ValueError("pages were lost or doubled")

    def _cut(self, count: int) -> range:
        """Take up to `count` pages from the smallest run that fits, or else from the largest."""
        fitting = [run for run in self._runs if run[1] >= count]
        first, length = min(fitting, key=lambda run: run[1]) if fitting else max(self._runs, key=lambda run: run[1])
        taken = min(count, length)
        index = bisect_left(self._runs, (first, length))
        self._runs[index : index + 1] = [(first + taken, length - taken)] if length > taken else []
        return range(first, first + taken)

    def _join(self, page: int) -> None:
        """Put one page back, merging it with the runs that it touches."""
        first, length = page, 1
        index = bisect_left(self._runs, (page, 0))
        if index < len(self._runs) and self._runs[index][0] == page + 1:
            length += self._runs.pop(index)[1]
        if index and sum(self._runs[index - 1]) == page:
            before = self._runs.pop(index - 1)
            first, length = before[0], before[1] + length
        insort(self._runs, (first, length))
