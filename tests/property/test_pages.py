"""The page allocator against a naive set of free pages: conservation, runs, refusals."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from shoal.peer.pages import PageAllocator


def longest_run(pages: set[int]) -> int:
    """Length of the longest row of consecutive numbers."""
    keyed = itertools.groupby(enumerate(sorted(pages)), key=lambda pair: pair[1] - pair[0])
    return max((len(list(group)) for _, group in keyed), default=0)


class Pages(RuleBasedStateMachine):
    """Allocations and releases in any order."""

    @initialize(n_pages=st.integers(0, 24))
    def make(self, n_pages):
        self.n_pages = n_pages
        self.allocator = PageAllocator(n_pages)
        self.free = set(range(n_pages))
        self.held: list[tuple[int, ...]] = []

    @rule(count=st.integers(0, 26))
    def allocate(self, count):
        run_fits = longest_run(self.free) >= count
        pages = self.allocator.allocate(count)
        if count > len(self.free):
            assert pages is None
            return
        assert len(pages) == len(set(pages)) == count
        assert self.free.issuperset(pages)
        if run_fits and count:
            assert list(pages) == list(range(pages[0], pages[0] + count))
        self.free.difference_update(pages)
        self.held.append(pages)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        pages = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.allocator.release(pages)
        self.free.update(pages)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release_a_part(self, data):
        pages = data.draw(st.permutations(self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))))
        keep = data.draw(st.integers(0, len(pages)))
        self.allocator.release(tuple(pages[keep:]))
        self.free.update(pages[keep:])
        self.held.append(tuple(pages[:keep]))

    @rule(data=st.data())
    def release_what_is_not_held(self, data):
        wrong = data.draw(st.sampled_from([*sorted(self.free), -1, self.n_pages]))
        some = self.held[0] if self.held else ()
        with pytest.raises(ValueError, match="not in use"):
            self.allocator.release((*some, wrong))

    @precondition(lambda self: any(self.held))
    @rule()
    def release_twice_at_once(self):
        pages = next(pages for pages in self.held if pages)
        with pytest.raises(ValueError, match="not in use"):
            self.allocator.release((*pages, pages[0]))

    @invariant()
    def free_and_used_are_all(self):
        if hasattr(self, "allocator"):
            self.allocator.check()
            assert self.allocator.free == len(self.free)


TestPages = Pages.TestCase
TestPages.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_the_smallest_run_that_fits_is_cut():
    allocator = PageAllocator(10)
    parts = [allocator.allocate(n) for n in (4, 1, 2, 1, 2)]
    for pages in (parts[0], parts[2]):
        allocator.release(pages)
    assert allocator.allocate(2) == parts[2]
    assert allocator.allocate(4) == parts[0]


def test_a_request_larger_than_every_run_is_spread():
    allocator = PageAllocator(5)
    parts = [allocator.allocate(1) for _ in range(5)]
    for pages in (parts[0], parts[2], parts[4]):
        allocator.release(pages)
    assert sorted(allocator.allocate(3)) == [0, 2, 4]
    assert allocator.allocate(1) is None


def test_a_lost_page_is_noticed():
    allocator = PageAllocator(4)
    allocator._runs.clear()
    with pytest.raises(ValueError, match="lost"):
        allocator.check()
