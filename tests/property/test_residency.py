"""Leases under pressure against a simulated device: whatever is opened, run, rewound, swapped, cached or closed, every
lease reads what it wrote, no page is lost or doubled, and whoever has work comes to run.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from shoal.peer import residency
from shoal.peer.holding import NEVER, Copy, Holding, Restore, Save
from shoal.peer.residency import Residency
from shoal.peer.wire import PREFIX_TOKENS

PROMPT_CHUNKS = 3
PATIENCE_S = 90.0  # virtual seconds in which everybody must have run, however many press


@dataclass(eq=False)
class Guest:
    """A lease as its client sees it: what its KV must say, and the step it asked for."""

    owner: str
    prompt: int
    tokens: int
    holding: Holding
    wrote: list[object] = field(default_factory=list)
    first_pass: bool = True
    ran: bool = False
    asked: tuple[int, int] | None = None  # position, count: what is left of it

    def text(self, position: int) -> object:
        """What a first pass writes there."""
        return self.owner, self.prompt, position


TAKE = residency.TAKE


class Pressure(RuleBasedStateMachine):
    """`device`: page -> what its slots say. Host memory is what `Saved.kv` holds."""

    @initialize(
        page_tokens=st.sampled_from([16, 32, 64]), pages=st.integers(2, 10), swap=st.sampled_from([0, 4, 12, 40]),
        take=st.sampled_from([1, 1, 8]), step_pages=st.sampled_from([1, 1, 3, NEVER]),
    )  # fmt: skip
    def make(self, page_tokens, pages, swap, take, step_pages):
        residency.TAKE = take
        self.page_tokens, self.n_pages, self.swap, self.step_pages = page_tokens, pages, swap, step_pages
        self.residency = Residency(pages, page_tokens, swap, step_pages)
        self.device = [[None] * page_tokens for _ in range(pages)]
        self.guests: list[Guest] = []
        self.now, self.serial = 0.0, 0

    # -- rules ---------------------------------------------------------------------------------------------------------

    @rule(
        owner=st.sampled_from("aab"), prompt=st.sampled_from([0, 0, 1]), tokens=st.integers(1, 400),
        named=st.sampled_from([True, True, False]), priority=st.sampled_from([0, 0, 1]),
    )  # fmt: skip
    def open(self, owner, prompt, tokens, named, priority):
        tokens = min(tokens, self.n_pages * self.page_tokens)
        keys = tuple(bytes([prompt, i]) for i in range(PROMPT_CHUNKS)) if named else ()
        needed = -(-tokens // self.page_tokens)
        held = sum(-(-guest.tokens // self.page_tokens) for guest in self.guests)
        holding = self.residency.open(tokens, priority, (owner, 0, 2), keys)
        assert (holding is None) == (held + needed > self.n_pages + self.swap)
        if holding is None:
            return
        guest = Guest(owner, prompt, tokens, holding)
        guest.wrote = [guest.text(position) for position in range(holding.end)]
        guest.first_pass = named
        assert holding.end % PREFIX_TOKENS == 0
        assert holding.end <= tokens
        self.guests.append(guest)

    @precondition(lambda self: self.idle())
    @rule(data=st.data(), back=st.sampled_from([0, 0, 1, 20, 70, 200]), count=st.sampled_from([1, 30, 64, 130]))
    def ask(self, data, back, count):
        self._ask(data.draw(st.sampled_from(self.idle())), back, count)

    @precondition(lambda self: self.idle())
    @rule(count=st.sampled_from([1, 64, 100]), passed_s=st.sampled_from([0.01, 0.2, 1.5]))
    def everybody_asks(self, count, passed_s):
        for guest in self.idle():
            self._ask(guest, 0, count)
        self.now += passed_s
        self._step(self.pending(), set())

    @precondition(lambda self: self.pending())
    @rule(
        data=st.data(), passed_s=st.sampled_from([0.0, 0.01, 0.2, 1.5]), leave=st.booleans(),
        chunk=st.sampled_from([NEVER, 1, 24, 100]),
    )  # fmt: skip
    def step(self, data, passed_s, leave, chunk):
        """An engine step, with so many tokens of each lease; a lease may end while it runs."""
        self.now += passed_s
        leaving = {data.draw(st.sampled_from(self.guests))} if leave else set()
        self._step(data.draw(st.permutations(self.pending())), leaving, chunk)

    @precondition(lambda self: len(self.guests) > 2)
    @rule(data=st.data())
    def close(self, data):
        self._close(data.draw(st.sampled_from(self.guests)))

    def teardown(self):
        try:
            self._let_all_run()
        finally:
            residency.TAKE = TAKE

    def _let_all_run(self):
        """Everybody who has work runs, although the others ask for more at once."""
        if not hasattr(self, "residency"):
            return
        for guest in self.idle():
            self._ask(guest, 0, 40)
        waiting, end, chunks = set(self.pending()), self.now + PATIENCE_S, itertools.cycle([40, 15, NEVER])
        while waiting:
            assert self.now < end, "some leases never run"
            waiting -= set(self._step(self.pending(), set(), next(chunks)))
            for guest in self.idle():
                self._ask(guest, 3, 20)
            self.now += min(0.3, self.residency.retry_s())
        for guest in list(self.guests):
            self._close(guest)
        assert self.residency.pages.free + self.residency.prefix.idle_pages == self.n_pages
        assert self.residency.committed == 0

    # -- the world -----------------------------------------------------------------------------------------------------

    def idle(self) -> list[Guest]:
        return [guest for guest in getattr(self, "guests", []) if guest.asked is None]

    def pending(self) -> list[Guest]:
        return [guest for guest in self.guests if guest.asked is not None]

    def _ask(self, guest: Guest, back: int, count: int):
        position = max(0, len(guest.wrote) - back)
        if position == guest.tokens:
            position -= 1
        guest.asked = position, min(count, guest.tokens - position)
        guest.holding.jobs += 1

    def _step(self, order: list[Guest], leaving: set[Guest], chunk: int = NEVER) -> list[Guest]:
        self.residency.begin(self.now)
        slices = {guest: (guest.asked[0], min(guest.asked[1], chunk)) for guest in order}
        batch = [guest for guest in order if self.residency.prepare(guest.holding, *slices[guest])]
        pages = {guest: guest.holding.pages for guest in batch}
        moves = self.residency.take_moves()
        assert sum(move.saved.count for move in moves if isinstance(move, Restore)) <= self.step_pages
        for move in moves:
            self._make(move)
        for guest in batch:
            self._run(guest, pages[guest], *slices[guest])
        for guest in leaving:
            self._close(guest)
        for guest in batch:
            if guest not in leaving:
                self.residency.written(guest.holding)
        return batch

    def _make(self, move):
        if isinstance(move, Save):
            move.saved.kv = [list(self.device[page]) for page in move.pages]
        elif isinstance(move, Restore):
            assert len(move.pages) == len(move.saved.kv) == move.saved.count
            for page, kv in zip(move.pages, move.saved.kv, strict=True):
                self.device[page] = list(kv)
        else:
            assert isinstance(move, Copy)
            self.device[move.target] = list(self.device[move.source])

    def _run(self, guest: Guest, pages: tuple[int, ...], position: int, count: int):
        left = guest.asked[1] - count
        guest.asked = (position + count, left) if left else None
        assert len(pages) >= -(-(position + count) // self.page_tokens)
        assert len(pages) <= guest.holding.max_pages
        for at in range(position):
            assert self.device[pages[at // self.page_tokens]][at % self.page_tokens] == guest.wrote[at]
        if position < len(guest.wrote) and guest.ran:
            guest.first_pass = False
        del guest.wrote[position:]
        for at in range(position, position + count):
            self.serial += 1
            first = guest.first_pass and at < PROMPT_CHUNKS * PREFIX_TOKENS
            guest.wrote.append(guest.text(at) if first else self.serial)
            assert self.residency.pages.holders(pages[at // self.page_tokens]) == 1  # nobody else reads it
            self.device[pages[at // self.page_tokens]][at % self.page_tokens] = guest.wrote[-1]
        guest.ran = True
        if not left:
            guest.holding.jobs -= 1
            guest.holding.idle_since = self.now

    def _close(self, guest: Guest):
        self.guests.remove(guest)
        self.residency.close(guest.holding)

    # -- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def pages_are_conserved(self):
        if not hasattr(self, "residency"):
            return
        pages = self.residency.pages
        pages.check()
        held = [page for guest in self.guests for page in guest.holding.pages]
        held += [page for chunk in self.residency.prefix._chunks.values() for page in chunk.pages]
        assert len(set(held)) + pages.free == self.n_pages
        assert all(pages.holders(page) == held.count(page) for page in set(held))

    @invariant()
    def host_memory_is_bounded(self):
        if hasattr(self, "residency"):
            saved = [saved.count for guest in self.guests for saved in guest.holding.saved]
            assert max(saved, default=0) <= self.step_pages
            assert sum(saved) <= self.swap + self.n_pages + residency.TAKE

    @invariant()
    def chunks_count_their_users(self):
        if hasattr(self, "residency"):
            cache = self.residency.prefix
            for chunk in cache._chunks.values():
                users = sum(chunk in guest.holding.chunks for guest in self.guests)
                assert chunk.users == users
                assert (chunk.key in cache._idle) == (not users)


TestPressure = Pressure.TestCase
TestPressure.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
