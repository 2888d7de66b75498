"""A link's rate and window, over lines of any rate and distance with daemons' buffers between."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.peer.flow import LEAST_WINDOW, MOST_WINDOW, Flow
from shoal.peer.line import Bucket, Line

MIB = 1 << 20


class Wire:
    """A line: bytes pass at `rate` and take `delay_s` each way; whoever writes to it is never held up. Reading and
    answering are late by up to `lag_s`."""

    def __init__(self, rate, delay_s, lag_s=0.0, seed=0):
        self.rate, self.delay_s, self.lag_s, self.rng = rate, delay_s, lag_s, random.Random(seed)
        self.free = 0.0
        self.events = []  # (answer's time, mark, arrival)
        self.read = 0.0

    def carry(self, size, now, mark):
        self.free = max(self.free, now) + size / self.rate
        if mark is not None:
            self.read = max(self.read, self.free + self.delay_s + self.rng.random() * self.lag_s)
            at = self.events[-1][0] if self.events else 0.0
            due = max(at, self.read + self.delay_s + self.rng.random() * self.lag_s)
            self.events.append((due, mark, self.read))


def send(flow, wire, size, now=0.0):
    """Send so many bytes as a channel does; when the last had been answered, and the longest that lay on the line."""
    deepest = 0.0
    while size or wire.events:
        while size and flow.room():
            part = min(flow.part_bytes, size)
            size -= part
            wire.carry(part, now, flow.wrote(part, now, more=bool(size)))
            deepest = max(deepest, wire.free - now)
        if not wire.events:
            if not size:
                break
            mark = flow.stuck(now)
            assert mark is not None
            wire.carry(0, now, mark)
        at, mark, arrived = wire.events.pop(0)
        now = max(now, at)
        assert flow.answered(mark, arrived + 1000.0, now)  # another clock
    return now, deepest


@settings(max_examples=20)
@given(
    rate=st.floats(1e5, 1e8),
    delay_s=st.floats(1e-4, 0.15),
    lag_s=st.sampled_from([0.0, 0.002]),
    seed=st.integers(0, 99),
)
def test_a_rate_is_found_within_a_tenth_and_the_line_is_kept_busy(rate, delay_s, lag_s, seed):
    flow, wire = Flow(), Wire(rate, delay_s, lag_s, seed)
    size = int(max(2 * MIB, 2.0 * rate, 30 * delay_s * rate))
    took, _ = send(flow, wire, size)
    assert flow.rate == pytest.approx(rate, rel=0.25 if lag_s else 0.1)
    assert took < 1.35 * size / rate + 24 * delay_s + 0.1
    again, _ = send(flow, wire, size, took)
    assert again - took < 1.15 * size / rate + 4 * delay_s + 0.05
    assert LEAST_WINDOW <= flow.window <= MOST_WINDOW


@settings(max_examples=15)
@given(rate=st.sampled_from([2.5e6, 1.25e7, 1.25e8]), delay_s=st.floats(1e-4, 0.1), seed=st.integers(0, 99))
def test_little_waits_on_a_shared_line(rate, delay_s, seed):
    flow, wire = Flow(), Wire(rate, delay_s, 0.0005, seed)
    now, _ = send(flow, wire, int(max(4 * MIB, 2.0 * rate)))
    flow.shared = True
    now, _ = send(flow, wire, int(rate), now + 1.0)
    _, deepest = send(flow, wire, int(rate), now)
    # What is under way and not on the line's far half; the window counts the answers' way too.
    assert deepest < 2 * delay_s + 0.015 + 2 * LEAST_WINDOW / rate


@given(st.lists(st.tuples(st.integers(1, 1 << 16), st.booleans(), st.integers(-3, 3)), max_size=200))
def test_answers_out_of_the_air_do_no_harm(writes):
    flow, now, last = Flow(), 0.0, 0
    for size, more, guess in writes:
        now += 0.001
        last = flow.wrote(size, now, more=more) or last
        flow.answered(max(0, last + guess), now * guess, now)
        assert flow.under_way >= 0
        assert flow.rate >= 0.0
        assert LEAST_WINDOW <= flow.window <= MOST_WINDOW


def test_a_clock_that_runs_slow_makes_no_line_quicker():
    flow, wire = Flow(), Wire(1e6, 0.01)
    honest = flow.answered
    flow.answered = lambda mark, at, now: honest(mark, at / 1000.0, now)
    send(flow, wire, 8 * MIB)
    assert flow.rate < 1.3e6


@pytest.mark.parametrize("late_s", [0.0, 0.02])
def test_a_links_first_sample_proves_nothing(late_s):
    """The other side's program reads the first mark late: what it reads next seems to have come quicker than it did."""
    flow, wire = Flow(), Wire(2.5e6, 0.01)
    honest, rates = flow.answered, []

    def answered(mark, at, now):
        found = honest(mark, at + (0.0 if rates else late_s), now)
        rates.append((flow.rate, flow.proven))
        return found

    flow.answered = answered
    send(flow, wire, 2 * MIB)
    first = next(number for number, (rate, _) in enumerate(rates) if rate)
    assert rates[first][0] == pytest.approx(4e6 if late_s else 2.5e6, rel=0.2)
    assert rates[first][1] == 0.0
    proven = [proven for _, proven in rates if proven]
    assert len(proven) > 5
    assert proven == pytest.approx([2.5e6] * len(proven), rel=0.1)


def test_a_line_that_becomes_slower_is_noticed():
    flow, wire = Flow(), Wire(1.25e7, 0.005)
    now, _ = send(flow, wire, 64 * MIB)
    wire.rate = 2.5e6
    send(flow, wire, 32 * MIB, now)
    assert flow.rate == pytest.approx(2.5e6, rel=0.1)


def test_small_messages_ask_for_next_to_no_marks():
    flow = Flow()
    marks = [flow.wrote(4096, 0.01 * step, more=False) for step in range(1000)]
    assert sum(mark is not None for mark in marks) <= 1000 * 4096 // 65536


@given(rate=st.floats(1e4, 1e9), sizes=st.lists(st.integers(1, 1 << 18), min_size=1, max_size=100))
def test_a_bucket_lets_no_more_through_than_its_rate(rate, sizes):
    bucket, now, sent = Bucket(rate), 0.0, 0
    for size in sizes:
        now += bucket.wait_s(now)
        assert sent <= rate * (now + 0.0201)
        bucket.take(size, now)
        sent += size
    assert not Bucket().wait_s(0.0)


def test_a_line_remembers_its_best_for_a_while_and_keeps_its_limit():
    line = Line()
    assert not line.upload(0.0)
    for rate, now in ((5.0, 0.0), (9.0, 10.0), (2.0, 20.0)):
        line.saw(rate, now)
    assert line.upload(30.0) == 9.0
    assert line.upload(915.0) == 2.0
    assert not line.upload(2000.0)
    limited = Line(4.0)
    limited.saw(9.0, 0.0)
    assert limited.upload(1.0) == 4.0
    assert Line(4.0).upload(1.0) == 4.0


def test_small_messages_with_pauses_between_say_nothing_of_the_line():
    """Tokens of 8 KiB, ten a second, fill a hundredth of the line; what they add up to is not what it can carry."""
    flow, wire, now = Flow(), Wire(8e6, 0.01), 0.0
    for _ in range(100):
        wire.carry(8192, now, flow.wrote(8192, now, more=False))
        now += 0.1
        while wire.events and wire.events[0][0] <= now:
            at, mark, arrived = wire.events.pop(0)
            assert flow.answered(mark, arrived, at)
    assert flow.rate == flow.proven == 0.0
    send(flow, wire, 8 * MIB, now)
    assert flow.proven == pytest.approx(8e6, rel=0.1)
