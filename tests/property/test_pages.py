"""The page allocator against a naive count of holders: conservation, runs, room to grow, sharing, refusals."""

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

    @rule(count=st.integers(0, 26), room=st.integers(0, 8))
    def allocate(self, count, room):
        run_fits = longest_run(self.free) >= count
        pages = self.allocator.allocate(count, room=room)
        if count > len(self.free):
            assert pages is None
            return
        assert len(pages) == len(set(pages)) == count
        assert self.free.issuperset(pages)
        if run_fits and count:
            assert list(pages) == list(range(pages[0], pages[0] + count))
        self.free.difference_update(pages)
        self.held.append(pages)

    @precondition(lambda self: any(self.held))
    @rule(data=st.data(), count=st.integers(0, 6), room=st.integers(0, 4))
    def grow(self, data, count, room):
        index = data.draw(st.sampled_from([i for i, pages in enumerate(self.held) if pages]))
        last = self.held[index][-1]
        pages = self.allocator.allocate(count, after=last, room=room)
        if count > len(self.free):
            assert pages is None
            return
        assert len(pages) == len(set(pages)) == count
        assert self.free.issuperset(pages)
        beside = sum(1 for _ in itertools.takewhile(self.free.__contains__, range(last + 1, last + 1 + count)))
        assert pages[:beside] == tuple(range(last + 1, last + 1 + beside))
        self.free.difference_update(pages)
        self.held[index] += pages

    @precondition(lambda self: any(self.held))
    @rule(data=st.data())
    def share(self, data):
        pages = data.draw(st.sampled_from([pages for pages in self.held if pages]))
        self.allocator.share(pages)
        self.held.append(pages)

    @rule(data=st.data())
    def share_what_is_not_held(self, data):
        wrong = data.draw(st.sampled_from([*sorted(self.free), -1, self.n_pages]))
        with pytest.raises(ValueError, match="not in use"):
            self.allocator.share((wrong,))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        pages = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.allocator.release(pages)
        self._count_free()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release_a_part(self, data):
        pages = data.draw(st.permutations(self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))))
        keep = data.draw(st.integers(0, len(pages)))
        self.allocator.release(tuple(pages[keep:]))
        self.held.append(tuple(pages[:keep]))
        self._count_free()

    def _count_free(self):
        self.free = set(range(self.n_pages)).difference(*self.held)

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
            held = [page for pages in self.held for page in pages]
            assert all(self.allocator.holders(page) == held.count(page) for page in range(self.n_pages))


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


def test_who_grows_finds_the_pages_behind_its_own_free():
    allocator = PageAllocator(16)
    first = allocator.allocate(2, room=5)
    second = allocator.allocate(3, room=2)
    assert (first, second) == ((0, 1), (7, 8, 9))
    assert allocator.allocate(5, after=1) == (2, 3, 4, 5, 6)
    assert allocator.allocate(2, after=9) == (10, 11)


def test_room_is_given_to_others_when_nothing_else_is_left_and_from_its_far_end():
    allocator = PageAllocator(8)
    assert allocator.allocate(1, room=7) == (0,)
    assert allocator.allocate(2) == (6, 7)
    assert allocator.allocate(2, after=0, room=5) == (1, 2)
    assert allocator.allocate(1) == (5,)


def test_room_that_nobody_wants_any_more_is_free_for_all():
    allocator = PageAllocator(8)
    pages = allocator.allocate(1, room=3)
    allocator.release(pages)
    assert allocator.allocate(8) == tuple(range(8))


def test_a_lost_page_is_noticed():
    allocator = PageAllocator(4)
    allocator._runs.clear()
    with pytest.raises(ValueError, match="lost"):
        allocator.check()
