"""Health: avoided at once, forgiven slowly, longer with every failure."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_swarms import NOW, peer, swarm
from shoal.routing import health
from shoal.routing.health import BAN_FIRST_S, BAN_LONGEST_S, HALF_LIFE_S, ONE_FAILURE_S, Health
from shoal.routing.planner import Knowledge, NoRoute, RouteRequest, plan_route

EVENTS = st.lists(st.tuples(st.sampled_from(["failure", "success"]), st.floats(0, 500)), max_size=30)


@settings(max_examples=100, deadline=None)
@given(EVENTS)
def test_any_history_stays_in_bounds_and_is_forgiven(events):
    watched, now = Health(), NOW
    for kind, passed_s in events:
        now += passed_s
        getattr(watched, kind)("a", now)
        assert ("a" in watched.banned(now)) or kind == "success"
        assert 1.0 <= watched.penalty("a", now) <= 1.0 + health.PENALTY_PER_FAILURE * health.MAX_SCORE
    assert watched.banned(now + BAN_LONGEST_S) == frozenset()
    assert watched.penalty("a", now + 12 * HALF_LIFE_S) < 1.01


def bans(failures: int) -> float:
    """Seconds until the peer may be used again after so many failures, each just late enough to count."""
    watched = Health()
    for number in range(failures):
        watched.failure("a", NOW + number * ONE_FAILURE_S)
    last = NOW + (failures - 1) * ONE_FAILURE_S
    return next(s for s in range(10_000) if not watched.banned(last + s))


def test_bans_double_up_to_the_longest():
    wanted = [BAN_FIRST_S, BAN_FIRST_S * 2, BAN_FIRST_S * 4, BAN_FIRST_S * 8]
    assert [bans(n) for n in (1, 2, 3, 4)] == pytest.approx(wanted, rel=0.05)  # the score decays a little meanwhile
    assert bans(30) == BAN_LONGEST_S


def test_one_death_seen_by_many_sessions_counts_once():
    watched = Health()
    for _ in range(30):
        watched.failure("a", NOW)
    assert not watched.banned(NOW + BAN_FIRST_S)


def test_penalty_falls_with_time_and_faster_with_success():
    failed, redeemed = Health(), Health()
    for watched in (failed, redeemed):
        watched.failure("a", NOW)
    redeemed.success("a", NOW)
    later = [failed.penalty("a", NOW + s) for s in (0, 60, 120, 600)]
    assert later == sorted(later, reverse=True)
    assert 1 < redeemed.penalty("a", NOW) < failed.penalty("a", NOW)
    assert redeemed.banned(NOW) == {"a"}
    assert failed.penalty("b", NOW) == 1


def test_a_clock_that_steps_back_makes_nothing_worse():
    watched = Health()
    watched.failure("a", NOW)
    assert watched.penalty("a", NOW - 1e6) == watched.penalty("a", NOW)


@pytest.mark.parametrize("back_s", [BAN_FIRST_S / 2, 3600.0])
def test_a_clock_that_steps_back_lengthens_no_ban(back_s):
    """Not the one of before, and not the one for a failure after it, which counts at once."""
    watched = Health()
    watched.failure("a", NOW)
    now = NOW - back_s
    assert not watched.banned(now)
    watched.failure("a", now)
    assert watched.banned(now) == {"a"}
    assert watched.banned(now + 2 * BAN_FIRST_S - 0.1) == {"a"}
    assert not watched.banned(now + 2 * BAN_FIRST_S)


def test_memory_is_bounded_and_the_worst_is_kept(monkeypatch):
    monkeypatch.setattr(health, "MAX_PEERS", 50)
    watched = Health()
    for i in range(200):
        watched.failure(f"peer{i}", NOW + i)
    assert len(watched.penalties(NOW + 200)) == 50
    assert watched.penalty("peer199", NOW + 200) > 1


def test_a_ban_outlives_the_view_and_then_fades():
    watched = Health()
    watched.failure("a", NOW)

    def plan(now: float, *peers):
        knowledge = Knowledge(penalties=watched.penalties(now), banned=watched.banned(now))
        return plan_route(swarm(2, *peers), RouteRequest(0, 2, knowledge=knowledge), now, random.Random(0))

    a, b = peer("a", 0, 2), peer("b", 0, 2, 0.011)
    assert isinstance(plan(NOW + 1, a), NoRoute)
    assert plan(NOW + 1, peer("a", 0, 2, sequence=9), b).hops[0].peer_id == "b"
    assert plan(NOW + BAN_FIRST_S, a, b).hops[0].peer_id == "b"
    assert plan(NOW + BAN_FIRST_S, a).hops[0].peer_id == "a"
