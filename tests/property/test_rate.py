"""The average that forgets: a steady stream reads as its rate, and silence as nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.peer.rate import MEMORY_S, Rate


@given(st.floats(0.1, 1000.0), st.floats(0.01, 0.5), st.floats(0.0, 1e9))
def test_a_steady_stream_reads_as_its_rate_and_is_forgotten(per_s, every_s, start):
    rate = Rate()
    now = start
    while now < start + 8 * MEMORY_S:
        now += every_s
        rate.add(per_s * every_s, now)
    assert rate.per_s(now) == pytest.approx(per_s, rel=0.05)
    assert rate.per_s(now + 8 * MEMORY_S) < per_s / 1000


@given(st.lists(st.tuples(st.floats(0.0, 1e4), st.floats(-5.0, 50.0)), max_size=30))
def test_it_is_never_negative_and_grows_only_when_something_happens(events):
    rate, now = Rate(), 0.0
    for amount, step_s in events:
        now += step_s  # a clock that goes backwards now and then
        before = rate.per_s(now)
        rate.add(amount, now)
        assert rate.per_s(now) >= before >= 0.0
        assert rate.per_s(now + 1.0) <= rate.per_s(now)
