"""Resting keeps any device under its limit, without wasting what the limit allows: against devices drawn at random."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.peer.duty import AIM, LEAST_SHARE, Duty

LIMIT_W = 150.0


@dataclass
class Device:
    """Draws `idle_w` doing nothing and `peak_w` at work; `noise` is what a measurement is off."""

    idle_w: float
    peak_w: float
    step_s: float
    noise: float = 0.0

    def run(self, duty: Duty, seconds: int, demand: float = 1.0, seed: int = 0) -> list[tuple[float, float]]:
        """(watts, share worked) of each second; `demand` is the share in which there is work at all."""
        rng, told = random.Random(seed), []
        for _ in range(seconds):
            worked_s = now_s = 0.0
            while now_s < 1.0:
                wait_s = self.step_s * (1.0 / demand - 1.0)
                rest_s = duty.rest_s(self.step_s)
                worked_s, now_s = worked_s + self.step_s, now_s + self.step_s + max(rest_s, wait_s)
            share = worked_s / now_s
            watts = self.idle_w + (self.peak_w - self.idle_w) * share
            told.append((watts, share))
            duty.measured(watts * rng.uniform(1 - self.noise, 1 + self.noise), share)
        return told


DEVICES = st.builds(Device, st.floats(5.0, 110.0), st.floats(100.0, 700.0), st.floats(0.0005, 0.08))


@settings(deadline=None, max_examples=150)
@given(DEVICES)
def test_any_device_stays_under_the_limit_and_uses_it(device):
    duty = Duty(LIMIT_W)
    told = device.run(duty, 60)
    late = told[20:]
    assert sum(watts for watts, _ in late) / len(late) <= LIMIT_W
    assert max(watts for watts, _ in late) <= 1.05 * LIMIT_W
    least_w = device.idle_w + (device.peak_w - device.idle_w) * LEAST_SHARE
    if device.peak_w <= AIM * LIMIT_W:
        assert duty.share == pytest.approx(1.0, abs=0.05)
    elif least_w < 0.85 * LIMIT_W:
        assert sum(watts for watts, _ in late) / len(late) >= 0.85 * LIMIT_W
    assert not duty.hopeless


@settings(deadline=None, max_examples=60)
@given(DEVICES)
def test_the_limit_holds_from_the_first_seconds_on(device):
    """What is over it at first is cut at once, not only in the long run."""
    told = device.run(Duty(LIMIT_W), 10)
    assert all(watts <= LIMIT_W * 1.05 for watts, _ in told[4:])


@settings(deadline=None, max_examples=60)
@given(DEVICES, st.integers(0, 2**31))
def test_figures_that_are_off_by_a_tenth_do_not_break_it(device, seed):
    device.noise = 0.1
    late = device.run(Duty(LIMIT_W), 90, seed=seed)[30:]
    assert sum(watts for watts, _ in late) / len(late) <= 1.02 * LIMIT_W


@given(st.floats(160.0, 400.0))
def test_a_device_that_draws_too_much_doing_nothing_is_told(idle_w):
    duty = Duty(LIMIT_W)
    Device(idle_w, idle_w + 200.0, 0.01).run(duty, 20)
    assert duty.hopeless
    assert duty.share == LEAST_SHARE


def test_little_demand_does_not_raise_what_is_allowed_and_is_not_slowed_down():
    duty = Duty(LIMIT_W)
    device = Device(30.0, 400.0, 0.01)
    device.run(duty, 30)
    before = duty.share
    quiet = device.run(duty, 30, demand=0.05)
    assert duty.share == before
    assert all(share == pytest.approx(0.05, rel=0.1) for _, share in quiet)
    late = device.run(duty, 10)
    assert all(watts <= 1.05 * LIMIT_W for watts, _ in late)


def test_short_rests_are_saved_up_and_none_is_lost():
    duty = Duty(LIMIT_W)
    duty.share = 0.9
    rests = [duty.rest_s(0.001) for _ in range(900)]
    assert all(rest == 0.0 or rest >= 0.002 for rest in rests)
    assert sum(rests) == pytest.approx(0.1, abs=0.003)
