"""Ratios of times that are measured in turn: right under drift and noise, with no more pairs than it takes."""

from __future__ import annotations

import random
import sys
from itertools import count
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benches"))

from _pairs import SURE, bounds, in_turn, known, ratio

LEAST, MOST = 6, 21


async def measured(over: float, noise: float, goal: float = 1.2, seed: int = 0) -> tuple[list, list[str]]:
    """Pairs of times on a machine that is twice as slow in the end, and the order in which they were taken."""
    generator, clock, order = random.Random(seed), count(), []

    async def take(kind: str, least: float) -> float:
        order.append(kind)
        return least * (1 + next(clock) / (2 * MOST)) * (1 + generator.uniform(0, noise))

    pairs = await in_turn(lambda: take("none", 0.5), lambda: take("there", 0.5 * over), goal, LEAST, MOST)
    return pairs, order


async def test_a_ratio_far_from_the_goal_is_known_after_the_fewest_pairs():
    for over in (1.0, 2.0):
        pairs, _ = await measured(over, 0.05)
        assert len(pairs) == LEAST
        assert known(pairs, 1.2)
        assert ratio(pairs) == pytest.approx(over, rel=0.06)


async def test_noise_near_the_goal_takes_more_pairs_and_no_more_than_the_most():
    pairs, _ = await measured(1.2, 0.6)
    assert len(pairs) == MOST
    assert not known(pairs[:LEAST], 1.2)


async def test_neither_is_measured_first_more_often():
    _, order = await measured(1.2, 0.6)
    assert order[:8] == ["none", "there", "there", "none"] * 2


def test_the_true_median_lies_between_the_bounds_as_often_as_said():
    generator = random.Random(1)
    for size in (6, 9, 15, 21):
        held = 0
        for _ in range(2000):
            low, high = bounds([generator.expovariate(1.0) for _ in range(size)])
            held += low <= 0.6931 <= high
        assert held / 2000 >= SURE - 0.015
        assert held / 2000 < 0.995, "no wider than needed"


def test_few_figures_bound_nothing():
    assert bounds([1.0, 1.1, 1.05]) == (0.0, float("inf"))
    assert not known([(1.0, 1.1)] * 3, 1.2)
