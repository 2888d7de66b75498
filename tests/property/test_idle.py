"""Idle or not: who sits down is heard at once, loads have to last, calm has to last, and nothing flaps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.peer.idle import CALM, LASTING_S, IdleLimits, Idleness, Sample

LIMITS = IdleLimits(gpu=0.1, cpu=0.25, input_s=300.0, settle_s=60.0)
QUIET = Sample(0.0, 0.0, 1000.0)
SHARES = st.none() | st.floats(0.0, 1.0)
SAMPLES = st.builds(Sample, SHARES, SHARES, st.none() | st.floats(0.0, 1000.0))
STEPS = st.lists(st.tuples(SAMPLES | st.just(QUIET), st.floats(0.1, 40.0)), max_size=60)


def is_calm(sample: Sample) -> bool:
    return (
        (sample.gpu or 0.0) <= CALM * LIMITS.gpu
        and (sample.cpu or 0.0) <= CALM * LIMITS.cpu
        and (sample.input_s is None or sample.input_s >= LIMITS.input_s)
    )


def settled(limits: IdleLimits = LIMITS) -> tuple[Idleness, float]:
    """A machine that has been found idle, and when."""
    it = Idleness(limits)
    it.look(QUIET, 0.0)
    assert it.look(QUIET, limits.settle_s)
    return it, limits.settle_s


@given(STEPS)
def test_it_serves_only_after_calm_that_lasted_and_always_says_why_not(steps):
    it, now, calm_since = Idleness(LIMITS), 0.0, None
    for sample, step_s in steps:
        now, before = now + step_s, it.idle
        idle = it.look(sample, now)
        calm_since = (now if calm_since is None else calm_since) if is_calm(sample) else None
        if idle and not before:
            assert calm_since is not None
            assert now - calm_since >= LIMITS.settle_s
        assert idle == (it.why == "")


@given(STEPS)
def test_it_never_flaps(steps):
    """Between the end of serving and its next begin lies the time to settle, whatever happens."""
    it, now, left_at = Idleness(LIMITS), 0.0, None
    for sample, step_s in steps:
        now, before = now + step_s, it.idle
        idle = it.look(sample, now)
        if before and not idle:
            left_at = now
        if idle and not before and left_at is not None:
            assert now - left_at >= LIMITS.settle_s


@given(SAMPLES)
def test_a_person_is_heard_at_once_and_a_load_only_if_it_lasts(sample):
    it, now = settled()
    touched = sample.input_s is not None and sample.input_s < LIMITS.input_s
    loaded = (sample.gpu or 0.0) > LIMITS.gpu or (sample.cpu or 0.0) > LIMITS.cpu
    assert it.look(sample, now + 1) is not touched
    if not touched:
        assert it.look(sample, now + 0.9 * LASTING_S)
        assert it.look(sample, now + 1 + LASTING_S) is not loaded


@given(st.lists(st.floats(0.11, 1.0), min_size=1, max_size=20))
def test_spikes_with_quiet_between_them_do_not_pause(spikes):
    it, now = settled()
    for gpu in spikes:
        now += 0.9 * LASTING_S
        assert it.look(Sample(gpu, 0.0, 1000.0), now)
        now += 0.5
        assert it.look(QUIET, now)


@given(st.floats(0.51, 1.0))
def test_what_hovers_around_a_limit_pauses_once(height):
    """Between half the limit and the limit a serving peer goes on and a paused one stays paused."""
    it, now = settled()
    between = Sample(height * LIMITS.gpu, height * LIMITS.cpu, 1000.0)
    for _ in range(100):
        now += 2.0
        assert it.look(between, now)
    it.look(Sample(input_s=0.0), now)
    for _ in range(100):
        now += 2.0
        assert not it.look(between, now)
    assert "% of the GPU" in it.why
    assert "processor" in it.why


@given(STEPS, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_what_cannot_be_known_does_not_count(steps, gpu, cpu):
    knowing, blind = Idleness(LIMITS), Idleness(LIMITS)
    now = 0.0
    for sample, step_s in steps:
        now += step_s
        assert blind.look(Sample(None, None, sample.input_s), now) == knowing.look(
            Sample(gpu * CALM * LIMITS.gpu, cpu * CALM * LIMITS.cpu, sample.input_s), now
        )


@pytest.mark.parametrize("input_s", [0.0, 5.0, None])
def test_people_and_loads_can_be_left_out(input_s):
    it, now = settled(IdleLimits(0.0, 0.0, 0.0))
    assert it.look(Sample(1.0, 1.0, input_s), now + 1)
    assert it.look(Sample(1.0, 1.0, input_s), now + 100)


def test_the_reasons_are_said_as_people_say_them():
    it, now = settled()
    it.look(Sample(0.63, 0.0, 1000.0), now)
    it.look(Sample(0.63, 0.0, 1000.0), now + LASTING_S)
    assert it.why == "other programs use 63 % of the GPU"
    it.look(Sample(0.0, 0.0, 12.0), now + 6)
    assert it.why == "somebody used this machine less than 300 s ago"
    it.look(QUIET, now + 7)
    it.look(QUIET, now + 30)
    assert it.why == "this machine has been quiet for 23 of 60 s"
