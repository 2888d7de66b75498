"""The scheduler under any mix of decodes, prefills and drops: nothing lost, doubled, over budget or starved."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from shoal.peer.scheduler import Budget, Scheduler

SESSIONS = [bytes([i]) * 16 for i in range(6)]


@st.composite
def budgets(draw) -> Budget:
    tokens = draw(st.integers(2, 12))
    return Budget(tokens, draw(st.integers(0, tokens - 1)))


class Scheduling(RuleBasedStateMachine):
    """The model: a queue of (job, count) per session, and how much of its head has run."""

    @initialize(budget=budgets())
    def make(self, budget):
        self.budget, self.scheduler = budget, Scheduler(budget)
        self.queues: dict[bytes, list[list[int]]] = defaultdict(list)  # [job, count, done so far]
        self.waited: dict[int, int] = {}  # head job -> tokens that ran since it became one

    @rule(session=st.sampled_from(SESSIONS), count=st.one_of(st.just(1), st.integers(1, 40)))
    def add(self, session, count):
        self.queues[session].append([self.scheduler.add(session, count), count, 0])

    @rule(session=st.sampled_from(SESSIONS))
    def drop(self, session):
        assert self.scheduler.drop(session) == [job for job, _, _ in self.queues.pop(session, [])]

    @rule()
    def step(self):
        heads = {queue[0][0]: session for session, queue in self.queues.items() if queue}
        waiting_decodes = sum(q[0][1] - q[0][2] == 1 for q in self.queues.values() if q)
        mixed = waiting_decodes < len(heads)
        batch = self.scheduler.next_batch()
        assert bool(batch) == bool(heads)
        assert sum(piece.count for piece in batch) <= self.budget.tokens
        assert len({piece.job for piece in batch}) == len(batch)
        decodes = 0
        for piece in batch:
            queue = self.queues[heads[piece.job]]
            job, count, done = queue[0]
            assert (piece.job, piece.offset) == (job, done)
            assert piece.count > 0
            decodes += count - done == 1
            queue[0][2] += piece.count
            assert piece.done == (queue[0][2] == count)
            if piece.done:
                queue.pop(0)
        room = self.budget.tokens - (self.budget.prefill_tokens if mixed else 0)
        assert decodes == min(waiting_decodes, room)  # decodes first, up to what is kept for prefill
        if mixed:  # and what they leave is used
            assert sum(piece.count for piece in batch) == min(
                self.budget.tokens, decodes + sum(self._prefill_left(heads, batch))
            )
        self._nobody_starves(heads, batch)

    def _prefill_left(self, heads, batch):
        """Tokens that the heads with more than one token had before this step."""
        taken = {piece.job: piece.count for piece in batch}
        for job, session in heads.items():
            left = next((q[1] - q[2] for q in self.queues[session] if q[0] == job), 0) + taken.get(job, 0)
            if left > 1:
                yield left

    def _nobody_starves(self, heads, batch):
        """A head waits for at most one job of each other session that came before, and decodes meanwhile."""
        served = {piece.job for piece in batch}
        self.waited = {job: self.waited.get(job, 0) + 1 for job in heads if job not in served}
        assert all(batches <= 40 * len(SESSIONS) for batches in self.waited.values())

    @invariant()
    def counts(self):
        if hasattr(self, "scheduler"):
            assert len(self.scheduler) == sum(map(len, self.queues.values()))
            left = sum(count - done for queue in self.queues.values() for _, count, done in queue)
            assert self.scheduler.tokens() == left


TestScheduling = Scheduling.TestCase
TestScheduling.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@settings(max_examples=60, deadline=None)
@given(budgets(), st.lists(st.tuples(st.sampled_from(SESSIONS), st.integers(1, 30)), max_size=20))
def test_all_tokens_run_once_in_order_and_in_few_batches(budget, jobs):
    scheduler, order, ran = Scheduler(budget), defaultdict(list), defaultdict(list)
    owner = {}
    for session, count in jobs:
        number = scheduler.add(session, count)
        owner[number] = session
        order[session] += [(number, i) for i in range(count)]
    batches = 0
    while batch := scheduler.next_batch():
        batches += 1
        for piece in batch:
            ran[owner[piece.job]] += [(piece.job, i) for i in range(piece.offset, piece.offset + piece.count)]
    assert ran == order
    assert batches <= sum(count for _, count in jobs)
    assert len(scheduler) == 0


@pytest.mark.parametrize("prefill_tokens", [1, 4])
def test_a_prefill_gets_through_a_flood_of_decodes(prefill_tokens):
    """Decodes come without end and more than fill every step; what is kept for prefill still runs."""
    scheduler = Scheduler(Budget(8, prefill_tokens))
    job = scheduler.add(b"p", 12)
    done_after = None
    waiting: dict[int, bytes] = {scheduler.add(f"d{i}".encode(), 1): f"d{i}".encode() for i in range(20)}
    for number in range(60):
        batch = scheduler.next_batch()
        for session in [waiting.pop(piece.job) for piece in batch if piece.job in waiting]:
            waiting[scheduler.add(session, 1)] = session
        assert sum(piece.count for piece in batch) == 8
        if any(piece.job == job and piece.done for piece in batch):
            done_after = number + 1
            break
    # The last token of the prefill is a token like a decode's: it waits its turn among the 20.
    assert done_after is not None
    assert done_after <= 12 // prefill_tokens + 4


def test_decodes_take_turns_when_they_do_not_all_fit():
    scheduler = Scheduler(Budget(3, 0))
    owner, runs = {}, defaultdict(int)
    for i in range(5):
        owner[scheduler.add(SESSIONS[i], 1)] = SESSIONS[i]
    for _ in range(25):
        for piece in scheduler.next_batch():
            runs[owner[piece.job]] += 1
            owner[scheduler.add(owner[piece.job], 1)] = owner[piece.job]
    assert set(runs.values()) == {15}


def test_a_step_never_passes_its_budget_however_much_is_kept_for_prefill():
    scheduler = Scheduler(Budget(tokens=4, prefill_tokens=8))
    scheduler.add(b"p", 5)
    for i in range(20):
        scheduler.add(bytes([i]), 1)
    assert sum(piece.count for piece in scheduler.next_batch()) == 4
