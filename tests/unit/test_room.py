"""Who makes room for whom, and what is found of a prompt by whom: victims and turns, chunks and their owners."""

from __future__ import annotations

import pytest
from shoal.peer.holding import NEVER, Copy, Holding, Restore, Save
from shoal.peer.precedence import BACKGROUND_TURNS, SETTLED_S, TURN_S
from shoal.peer.residency import TAKE, Residency
from shoal.peer.wire import PREFIX_TOKENS

ALICE, BOB = ("alice", 0, 4), ("bob", 0, 4)
PAGE = 16
KEYS = (b"k0", b"k1", b"k2")


class Peer:
    """A residency whose steps have no contents: whoever is asked to run, runs if there is room."""

    def __init__(self, pages: int = 8, swap: int = 32, step_pages: int = NEVER) -> None:
        self.it = Residency(pages, PAGE, swap, step_pages)
        self.now = 0.0

    def open(self, tokens: int = 128, scope=ALICE, keys=(), priority: int = 0) -> Holding:
        holding = self.it.open(tokens, priority, scope, keys)
        assert holding is not None
        return holding

    def run(self, *asked: tuple[Holding, int, int], after_s: float = 0.0) -> tuple[list[Holding], list]:
        """One step: who ran, and which moves it took. Who did not run has work waiting from then on."""
        self.now += after_s
        for holding, _, _ in asked:
            holding.jobs = 1
        self.it.begin(self.now)
        ran = [holding for holding, position, count in asked if self.it.prepare(holding, position, count)]
        moves = self.it.take_moves()
        for holding in ran:
            holding.jobs, holding.idle_since = 0, self.now
            self.it.written(holding)
        return ran, moves


def saved_of(moves) -> list[Holding]:
    return [move.holding for move in moves if isinstance(move, Save)]


# -- room --------------------------------------------------------------------------------------------------------------


def test_tokens_that_fit_cost_nothing():
    peer = Peer()
    lease = peer.open()
    assert peer.run((lease, 0, 17))[1] == []
    assert len(lease.pages) == 2
    assert peer.run((lease, 17, 1))[1] == []
    assert len(lease.pages) == 2


def test_who_has_been_idle_longest_makes_room_first_and_comes_back_as_it_was():
    peer = Peer()
    first, second, third = (peer.open() for _ in range(3))
    peer.run((first, 0, 64))
    peer.run((second, 0, 64), after_s=0.01)
    ran, moves = peer.run((third, 0, 64), after_s=SETTLED_S)
    assert ran == [third]
    assert saved_of(moves) == [first]
    assert (first.pages, first.n_pages) == ((), 4)
    ran, moves = peer.run((first, 63, 1), after_s=SETTLED_S)
    assert ran == [first]
    assert saved_of(moves) == [second]
    assert [type(move) for move in moves] == [Save, Restore]  # in this order: the pages are needed
    assert len(moves[1].pages) == moves[1].saved.count == 4
    assert len(first.pages) == 4


def test_of_those_with_work_background_yields_before_the_youngest_and_the_oldest_goes_on():
    peer = Peer(pages=9)
    oldest, background, youngest = peer.open(), peer.open(priority=1), peer.open()
    for holding in (oldest, background, youngest):
        peer.run((holding, 0, 48))
    for holding in (background, youngest):
        holding.jobs = 1
    assert saved_of(peer.run((oldest, 48, 1))[1]) == [background]
    assert saved_of(peer.run((oldest, 49, 47))[1]) == []  # three more pages that the background lease left
    assert saved_of(peer.run((oldest, 96, 1))[1]) == [youngest]


def test_the_young_wait_for_a_turn_and_then_have_one():
    peer = Peer()
    old, young = peer.open(), peer.open()
    peer.run((old, 0, 100))
    old.jobs = 1
    assert peer.run((young, 0, 20))[0] == []
    old.jobs = 1
    assert peer.run((young, 0, 20), after_s=TURN_S - 0.01)[0] == []
    old.jobs = 1
    assert peer.run((young, 0, 20), after_s=0.01)[0] == [young]
    assert peer.run((young, 20, 1), (old, 100, 1), after_s=TURN_S / 2)[0] == [young]  # its turn, though it is younger
    assert peer.run((old, 100, 1), after_s=TURN_S / 2)[0] == [old]


def test_background_waits_longer_but_not_for_ever():
    peer = Peer()
    normal, background = peer.open(), peer.open(priority=1)
    peer.run((normal, 0, 128))
    seconds = 0
    while peer.run((normal, 127, 1), (background, 0, 1))[0] != [background] and seconds < 100:
        peer.now, seconds = peer.now + 0.05, seconds + 0.05
        normal.jobs = 1
    assert BACKGROUND_TURNS * TURN_S < seconds < (BACKGROUND_TURNS + 2) * TURN_S


def test_small_leases_without_end_do_not_keep_a_large_one_out():
    peer = Peer(pages=4, swap=400)
    small = [peer.open(tokens=16) for _ in range(40)]
    large = peer.open(tokens=64)
    ran: list[Holding] = []
    for _ in range(200):
        ran = peer.run((large, 0, 64), *((holding, 0, 1) for holding in small), after_s=0.1)[0]
        for holding in small:
            holding.jobs = 1
        if large in ran:
            break
    assert large in ran
    assert peer.now < 5 * TURN_S


def test_nobody_in_a_running_step_makes_room():
    peer = Peer(pages=4)
    first, second = peer.open(tokens=64), peer.open(tokens=64)
    peer.run((first, 0, 60))
    peer.now += 10 * TURN_S
    assert peer.run((first, 60, 1), (second, 0, 10))[0] == [first]
    assert second.pages == ()


def test_a_lease_fits_alone_whatever_the_others_hold():
    peer = Peer(pages=4, swap=12)
    leases = [peer.open(tokens=64) for _ in range(4)]
    assert peer.it.open(1, 0, BOB) is None
    for _ in range(3):
        for lease in leases:
            assert peer.run((lease, 0, 64), after_s=2 * SETTLED_S)[0] == [lease]


# -- long leases -------------------------------------------------------------------------------------------------------

LONG, STEP = 40, 10  # pages of a long lease, and those that come back before one step
LAST = LONG * PAGE - 1


def long_pair(others: int = 0) -> tuple[Peer, Holding, Holding]:
    """Two long leases on a device for one of them and `others` pages: the first is in host memory, the second idle."""
    peer = Peer(LONG + others, swap=2 * LONG, step_pages=STEP)
    first, second = peer.open(tokens=LONG * PAGE), peer.open(tokens=LONG * PAGE)
    peer.run((first, 0, LAST))
    peer.run((second, 0, LAST), after_s=SETTLED_S)
    peer.now += 2 * SETTLED_S
    return peer, first, second


def pages_of(moves, kind) -> int:
    return sum(move.saved.count for move in moves if isinstance(move, kind))


def bring_back(peer: Peer, holding: Holding, *beside: tuple[Holding, int, int]) -> list[list[Holding]]:
    """Who ran in each step, up to the one in which a lease does."""
    steps: list[list[Holding]] = []
    while not steps or (holding not in steps[-1] and len(steps) < 100):
        steps.append(peer.run((holding, LAST, 1), *beside, after_s=0.02)[0])
    return steps


def test_a_long_lease_comes_back_over_several_steps_in_which_others_run():
    peer, first, second = long_pair(others=1)
    other = peer.open(tokens=PAGE)
    for step in range(4):
        ran, moves = peer.run((first, LAST, 1), (other, step, 1), after_s=0.02)
        assert ran == ([first, other] if step == 3 else [other])
        assert 0 < pages_of(moves, Restore) <= STEP
        assert pages_of(moves, Save) <= STEP + TAKE  # the other one needs a page as well
    assert (len(first.pages), first.saved, len(second.pages)) == (LONG, [], 0)


def test_steps_that_bring_back_several_leases_bring_no_more_pages():
    peer = Peer(pages=24, swap=48, step_pages=STEP)
    leases = [peer.open(tokens=8 * PAGE) for _ in range(6)]
    for lease in leases:
        peer.run((lease, 0, 8 * PAGE - 1), after_s=2 * SETTLED_S)
    back, waiting = [], leases[:3]
    while waiting:
        ran, moves = peer.run(*((lease, 8 * PAGE - 1, 1) for lease in waiting), after_s=0.02)
        back.append(pages_of(moves, Restore))
        waiting = [lease for lease in waiting if lease not in ran]
    assert back == [8, 8, 8]


def test_others_get_pages_while_one_who_has_waited_long_comes_back():
    """Also before a step that brings fewer pages than it may, since the next ones would be too many."""
    peer, first, second = long_pair(others=4)
    other = peer.open(tokens=4 * PAGE)
    second.jobs, second.turn_ends = 1, peer.now + TURN_S
    assert peer.run((first, LAST, 1)) == ([], [])
    second.jobs = 0
    back = []
    for position in range(0, 4 * PAGE, PAGE):
        ran, moves = peer.run((first, LAST, 1), (other, position, PAGE), after_s=0.02 if back else 2.5 * TURN_S)
        assert other in ran
        back.append(pages_of(moves, Restore))
    assert back == [8, STEP, STEP, STEP]


def test_who_cannot_come_back_whole_does_not_begin():
    peer, first, second = long_pair(2 * STEP)
    bring_back(peer, first)
    other = peer.open(tokens=STEP * PAGE)
    peer.run((other, 0, STEP * PAGE), after_s=TURN_S)
    peer.it.close(other)
    assert (len(second.pages), peer.it.pages.free) == (STEP, STEP)
    first.jobs = 1  # and it is older
    assert peer.run((second, LAST, 1)) == ([], [])
    assert (len(second.pages), peer.it.pages.free) == (STEP, STEP)


def test_who_has_begun_to_leave_goes_on_though_it_has_work_again_and_is_older():
    peer, first, second = long_pair()
    bring_back(peer, first)
    peer.now += TURN_S
    assert peer.run((second, LAST, 1))[0] == []
    assert bring_back(peer, second, (first, LAST, 1)) == [[], [], [second]]


def test_two_who_drive_each_other_out_both_come_to_run_and_no_more_than_a_turn_s_pages_move():
    peer, first, second = long_pair()
    runs, moved, turns = {first: 0, second: 0}, 0, 20
    while peer.now < turns * TURN_S:
        ran, moves = peer.run((first, LAST, 1), (second, LAST, 1), after_s=0.02)
        moved += pages_of(moves, Restore)
        for holding in ran:
            runs[holding] += 1
        first.jobs = second.jobs = 1
    assert min(runs.values()) > 0.8 * turns / 2 * TURN_S / 0.02
    assert LONG * (turns - 3) < moved <= LONG * turns


def test_a_lease_that_ends_on_its_way_back_leaves_no_page_behind():
    peer, first, second = long_pair()
    peer.run((first, LAST, 1))
    assert (len(first.pages), len(second.pages)) == (STEP, LONG - STEP)
    peer.it.close(first)
    peer.it.pages.check()
    assert (peer.it.pages.free, peer.it.committed) == (STEP, LONG)
    assert peer.run((second, LAST, 1), after_s=0.02)[0] == [second]
    peer.it.close(second)
    assert (peer.it.pages.free, peer.it.committed) == (LONG, 0)


# -- beginnings of prompts ---------------------------------------------------------------------------------------------


def with_prompt(peer: Peer, scope=ALICE, chunks: int = 2) -> Holding:
    holding = peer.open(keys=KEYS[:chunks], scope=scope)
    peer.run((holding, holding.end, chunks * PREFIX_TOKENS - holding.end))
    return holding


def test_the_owners_next_lease_shares_the_pages_of_whole_chunks():
    peer = Peer()
    first = peer.open(keys=KEYS)
    peer.run((first, 0, 100))
    second = peer.open(keys=KEYS)
    assert (second.end, second.pages) == (PREFIX_TOKENS, first.pages[:4])
    assert (peer.it.counts.hits, peer.it.counts.hit_tokens) == (1, PREFIX_TOKENS)


def test_what_a_lease_names_when_it_ends_may_be_found_as_far_as_it_has_run():
    peer = Peer(pages=32)
    first = peer.open(keys=KEYS[:1])
    peer.run((first, 0, 100))
    peer.run((first, 100, 50))
    peer.it.name(first, KEYS)
    peer.it.close(first)
    assert peer.open(keys=KEYS, tokens=300).end == 2 * PREFIX_TOKENS


def test_what_was_planned_and_has_not_run_cannot_be_named():
    """Its pages may hold what somebody else has left there."""
    peer = Peer()
    first = peer.open(keys=())
    peer.run((first, 0, 64))
    peer.it.begin(peer.now)
    assert peer.it.prepare(first, 64, 64)
    peer.it.name(first, KEYS)
    assert peer.open(keys=KEYS, tokens=300).end == PREFIX_TOKENS


def test_names_that_contradict_those_of_the_prompt_are_ignored():
    peer = Peer()
    first = with_prompt(peer, chunks=1)
    peer.run((first, first.end, 64))
    peer.it.name(first, (KEYS[1], KEYS[0]))
    assert peer.open(keys=(KEYS[1], KEYS[0])).end == 0
    assert peer.open(keys=KEYS).end == PREFIX_TOKENS


def test_a_rewind_takes_back_what_had_run():
    peer = Peer()
    first = peer.open(keys=())
    peer.run((first, 0, 128))
    peer.run((first, 60, 1))
    peer.it.name(first, KEYS)
    assert peer.open(keys=KEYS).end == 0


@pytest.mark.parametrize("scope", [BOB, ("alice", 0, 3), ("alice", 1, 4)])
def test_another_owner_or_span_with_the_same_key_finds_nothing(scope):
    peer = Peer(pages=32)
    with_prompt(peer)
    other = peer.open(keys=KEYS, scope=scope)
    assert (other.end, other.pages) == (0, ())


def test_another_owner_cannot_replace_what_the_first_one_finds():
    peer = Peer(pages=64)
    mine = with_prompt(peer)
    theirs = with_prompt(peer, BOB)
    assert peer.open(keys=KEYS).pages == mine.pages
    assert peer.open(keys=KEYS, scope=BOB).pages == theirs.pages
    assert not set(mine.pages) & set(theirs.pages)


def test_a_beginning_outlives_its_lease():
    peer = Peer()
    first = with_prompt(peer)
    pages = first.pages
    peer.it.close(first)
    assert peer.it.pages.free == 0
    assert peer.it.prefix.idle_pages == 8
    assert peer.open(keys=KEYS).pages == pages


def test_a_rewind_into_shared_pages_copies_the_one_that_it_writes_to():
    peer = Peer(pages=16)
    first = with_prompt(peer)
    second = peer.open(keys=KEYS)
    assert second.end == 2 * PREFIX_TOKENS
    _, moves = peer.run((second, 100, 1))
    assert moves == [Copy(second, first.pages[6], second.pages[6])]
    assert second.pages[:6] == first.pages[:6]
    assert not set(second.pages[6:]) & set(first.pages)
    assert peer.open(keys=KEYS).pages == first.pages


def test_a_rewind_to_a_pages_edge_copies_nothing():
    peer = Peer(pages=16)
    first = with_prompt(peer)
    second = peer.open(keys=KEYS)
    _, moves = peer.run((second, 96, 1))
    assert moves == []
    assert second.pages[:6] == first.pages[:6]
    assert second.pages[6] not in first.pages


def test_what_is_written_after_a_rewind_is_not_found_by_the_prompts_keys():
    peer = Peer(pages=32)
    first = peer.open(keys=KEYS)
    peer.run((first, 0, 100))
    peer.run((first, 80, 60))
    assert peer.open(keys=KEYS).end == PREFIX_TOKENS


def test_a_first_step_before_the_cached_end_still_is_the_prompt():
    """The client begins where all of its hops can: here the second chunk, though this peer knows it."""
    peer = Peer(pages=32)
    with_prompt(peer)
    second = peer.open(keys=KEYS, tokens=300)
    peer.run((second, PREFIX_TOKENS, 2 * PREFIX_TOKENS))
    assert peer.open(keys=KEYS, tokens=300).end == 3 * PREFIX_TOKENS


def test_under_pressure_idle_chunks_go_before_any_lease_and_the_prompts_end_first():
    peer = Peer(pages=12)
    first = with_prompt(peer)
    peer.it.close(first)
    second = peer.open(scope=BOB)
    peer.run((second, 0, 64))
    _, moves = peer.run((second, 64, 1), after_s=1.0)
    assert moves == []
    assert peer.it.counts.evicted_chunks == 1
    assert peer.open(keys=KEYS).end == PREFIX_TOKENS


def test_a_forgotten_beginning_is_known_again_after_the_next_lease():
    peer = Peer(pages=8)
    peer.it.close(with_prompt(peer))
    full = peer.open(scope=BOB)
    peer.run((full, 0, 128))
    peer.it.close(full)
    assert peer.open(keys=KEYS).end == 0
    peer.it.close(with_prompt(peer))
    assert peer.open(keys=KEYS).end == 2 * PREFIX_TOKENS


def test_the_least_recently_used_goes_first():
    peer = Peer(pages=8)
    old, new = with_prompt(peer, chunks=1), with_prompt(peer, BOB, chunks=1)
    peer.it.close(old)
    peer.it.close(new)
    peer.it.close(peer.open(keys=KEYS))  # alice's was used once more
    third = peer.open()
    peer.run((third, 0, 1))
    assert peer.it.open(64, 0, BOB, KEYS).end == 0
    assert peer.open(keys=KEYS).end == PREFIX_TOKENS


def test_pages_that_do_not_divide_a_chunk_are_never_shared():
    it = Residency(16, 24)
    holding = it.open(128, 0, ALICE, KEYS)
    assert it.prepare(holding, 0, 128)
    it.written(holding)
    assert it.open(64, 0, ALICE, KEYS).end == 0
