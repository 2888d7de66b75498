"""The planning benchmark on a tiny swarm, and the parts that its figures stand on, against what is known by hand."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "benches"))

import _plan_petals as petals  # noqa: E402
from _plan_flow import bound, carried, over_routes, together  # noqa: E402


def test_the_tiny_form_says_all_its_figures(tmp_path):
    found = tmp_path / "found.json"
    command = [str(ROOT / "scripts" / "bench"), "plan", "--tiny", "--json", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    figures = json.loads(found.read_text())
    goals = {"route_ms", "placement_ms", "of_max_flow", "over_petals_rules"}
    assert goals | {"columns_ms", "columns_again_ms", "routes_of_max_flow"} <= set(figures)
    assert all(value >= 0 for value in figures.values())
    assert 0 < figures["of_max_flow"] <= 1
    assert 0 < figures["routes_of_max_flow"] <= 1 + 1e-6
    assert all(name in done.stdout for name in figures)


def test_flow_splits_a_peers_time_as_is_best():
    """The wide peer helps where the other is missing: 6 of its 12 block-tokens a second on each of two blocks."""
    assert carried([range(4), range(2)], [12.0, 12.0], 4) == pytest.approx(6.0)
    assert carried([range(4)], [12.0], 4) == pytest.approx(3.0)
    assert carried([range(3)], [12.0], 4) == 0.0
    assert bound([4, 2], [12.0, 12.0], 4) == pytest.approx(6.0)


def test_no_placement_carries_more_than_the_bound():
    rng = random.Random(3)
    for _ in range(20):
        rooms, speeds = [rng.randint(1, 6) for _ in range(8)], [rng.uniform(1, 9) for _ in range(8)]
        spans = [range(start := rng.randint(0, 6 - room), start + room) for room in rooms]
        assert carried(spans, speeds, 6) <= bound(rooms, speeds, 6) * (1 + 1e-6)


def test_routes_carry_what_their_peers_have_time_for():
    """Two routes over a peer that has time for 10 tokens/s; a third past it, over one that has time for 4."""
    fixed = [{"shared": 0.1, "own": 0.01}, {"shared": 0.1}, {"apart": 0.25}]
    assert over_routes(fixed) == pytest.approx(14.0)
    assert over_routes([{"slow": 0.2, "quick": 0.1}, {"quick": 0.1}]) == pytest.approx(10.0)


def test_sessions_that_share_a_peer_slow_each_other():
    alone, apart = together([0.1], [{"a": 0.1}]), together([0.1, 0.1], [{"a": 0.1}, {"b": 0.1}])
    shared = together([0.1, 0.1], [{"a": 0.1}, {"a": 0.1}])
    assert alone == pytest.approx([5.0])
    assert apart == pytest.approx([5.0, 5.0])
    assert shared[0] == pytest.approx(1 / (0.1 + 0.1 * (1 + 0.15 * 0.52)), rel=0.01)


def test_a_petals_server_takes_the_interval_that_is_worst_off():
    assert petals.best_start(np.array([5.0, 1, 3, 2, 9]), 2) == 1  # (1, 3) comes before (1, 5) and (2, 3)
    assert petals.best_start(np.array([1.0, 5, 1, 4]), 2) == 2


def test_a_petals_server_moves_only_where_balance_is_bad():
    rates = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}
    lopsided = {"a": range(2), "b": range(2), "c": range(2), "d": range(2, 4)}
    assert petals.wants_to_move("a", lopsided, rates, 4, random.Random(0)) == 2
    assert petals.wants_to_move("d", lopsided, rates, 4, random.Random(0)) is None
    even = {**lopsided, "c": range(2, 4)}
    assert petals.wants_to_move("a", even, rates, 4, random.Random(0)) is None


def test_a_petals_client_takes_the_shortest_path():
    spans = {"near": range(2), "far": range(4), "last": range(2, 4)}
    block_s = {"near": 0.01, "far": 0.01, "last": 0.01}
    home_s = {"near": 0.001, "far": 0.2, "last": 0.001}
    assert petals.route(spans, block_s, home_s, lambda _a, _b: 0.001, 4) == [("near", 0, 2), ("last", 2, 4)]
    assert petals.route(spans, block_s, home_s | {"far": 0.005}, lambda _a, _b: 0.05, 4) == [("far", 0, 4)]
