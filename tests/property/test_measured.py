"""What a client learns of its hops: receipts win over claims, its own clock wins over receipts, and both fade."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_swarms import NOW, peer, peer_ids, swarm
from shoal.client.measured import MEMORY_S, RUSH_S, Measured
from shoal.client.times import HopTimes
from shoal.peer.errors import HopClosed, HopRefused, Reason
from shoal.routing.cost import HOP_OVERHEAD_S
from shoal.routing.planner import Knowledge, RouteRequest, plan_route

RTTS = {"a": 0.02, "b": 0.02, "c": 0.02, "liar": 0.02, "far": 0.2}
LEGS = swarm(4, *(peer(i, 0, 4, rtts=tuple((j, 0.02) for j in RTTS)) for i in RTTS)).columns


def known(measured: Measured, now: float = NOW, rtts=RTTS) -> Knowledge:
    return measured.knowledge(LEGS, rtts, now)


def times(steps: int = 8, compute_s: float = 0.04, queue_s: float = 0.0, **kept: float) -> HopTimes:
    """One-token steps through four blocks; `kept`: seconds that each was kept in all, by the node before."""
    found = HopTimes()
    for _ in range(steps):
        found.add(queue_s, compute_s, 1, 4)
        for before, seconds in kept.items():
            found.keeps("" if before == "client" else before, seconds - queue_s - compute_s)
    return found


def test_speeds_and_waits_come_from_receipts():
    measured = Measured()
    seen = times(queue_s=0.003)
    seen.add(0.003, 1.2, 30, 4)
    measured.learn({"a": seen}, NOW)
    found = known(measured)
    assert found.speeds["a"].decode_s == pytest.approx(0.01)
    assert found.speeds["a"].prefill_s == pytest.approx((0.3 - 0.01) / 30 + 0.01 / 128)
    assert found.waits_s["a"] == pytest.approx(0.003, abs=2e-6)


@pytest.mark.parametrize("size", [16, 64, 128, 1000])
def test_a_prompt_s_speed_does_not_hang_on_the_size_of_its_chunks(size):
    """A chunk of n tokens takes 10 + 2 n ms a block."""
    measured, seen = Measured(), times()
    for _ in range(10):
        seen.add(0.0, 4 * (0.01 + 0.002 * size), size, 4)
    measured.learn({"a": seen}, NOW)
    assert known(measured).speeds["a"].prefill_s == pytest.approx(0.002 + 0.01 / 128)


def test_what_was_never_seen_is_not_a_number_and_the_claim_stands():
    measured = Measured()
    measured.learn({"a": times()}, NOW)
    assert math.isnan(known(measured).speeds["a"].prefill_s)
    view = swarm(4, peer("a", 0, 4, prefill_s=0.05), peer("b", 0, 4, prefill_s=0.05))
    request = RouteRequest(0, 4, prompt_tokens=10, new_tokens=0, knowledge=known(measured))
    assert plan_route(view, request, NOW, random.Random(0)).prefill_s == pytest.approx(0.0205 + 10 * 4 * 0.05, rel=1e-3)


def test_new_steps_move_a_figure_and_many_move_it_more():
    measured = Measured()
    measured.learn({"a": times(64)}, NOW)
    measured.learn({"a": times(1, compute_s=0.4)}, NOW)
    little = known(measured).speeds["a"].decode_s
    measured.learn({"a": times(64, compute_s=0.4)}, NOW)
    assert 0.01 < little < 0.02 < 0.08 < known(measured).speeds["a"].decode_s < 0.1


def test_what_a_peer_hides_counts_as_waiting():
    """It says 40 ms, the way takes 20, and a token comes out after 200."""
    measured = Measured()
    measured.learn({"a": times(client=0.2)}, NOW)
    assert known(measured).hidden_s["a"] == pytest.approx(0.2 - 0.02 - 0.04 - 0.0005, abs=2e-6)


def test_who_hides_times_of_tokens_hides_those_of_prompts():
    measured = Measured()
    seen = times(compute_s=0.001, client=0.02 + 0.0005 + 0.1)
    seen.add(0.0, 0.012, 30, 4)
    measured.learn({"a": seen}, NOW)
    assert known(measured).speeds["a"].prefill_s == pytest.approx(((0.003 - 0.00025) / 30 + 0.00025 / 128) * 99)


def test_a_long_way_from_one_node_is_not_a_peers_fault():
    measured = Measured()
    measured.learn({"a": times(b=0.2, c=0.05)}, NOW)
    assert known(measured).hidden_s["a"] < 0.001
    measured.learn({"liar": times(b=0.2, c=0.21)}, NOW)
    assert known(measured).hidden_s["liar"] > 0.14
    assert known(measured).legs_s["b", "a"] == pytest.approx(0.2 - 0.04 - 0.0005)


def test_a_way_that_is_shorter_than_was_thought_is_learned():
    measured = Measured()
    measured.learn({"a": times(client=0.04 + 0.0005 + 0.015), "c": times(b=0.04 + 0.0005 + 0.004)}, NOW)
    seen = known(measured)
    assert seen.rtts_s["a"] == pytest.approx(0.015)
    assert seen.legs_s["b", "c"] == pytest.approx(0.004)
    assert max(seen.hidden_s.values()) < 1e-5


def test_the_news_of_a_far_node_comes_late_and_that_is_counted():
    """From `far`, 100 ms off, to a peer 10 ms off: its receipt comes 80 ms before that of the node before it."""
    measured = Measured()
    measured.learn({"a": times(far=0.01 + 0.01 - 0.1 + 0.04 + 0.03)}, NOW)
    assert known(measured).hidden_s["a"] == pytest.approx(0.03 - 0.0005, abs=2e-6)


def test_what_was_seen_long_ago_is_forgotten():
    measured = Measured()
    measured.learn({"a": times()}, NOW)
    assert "a" in known(measured, NOW + MEMORY_S - 1).speeds
    later = known(measured, NOW + MEMORY_S)
    assert not later.speeds
    assert not later.hidden_s


def test_what_was_forgotten_does_not_come_back_with_a_new_token():
    measured = Measured()
    measured.learn({"a": times(64, compute_s=4.0, queue_s=2.0)}, NOW)
    measured.learn({"a": times(1)}, NOW + MEMORY_S)
    found = known(measured, NOW + MEMORY_S)
    assert found.speeds["a"].decode_s == pytest.approx(0.01)
    assert found.waits_s["a"] == 0.0


@pytest.mark.parametrize(("age_s", "taken"), [(RUSH_S - 1, "a"), (RUSH_S, "b")])
def test_how_many_wait_is_what_was_seen_lately_and_else_what_is_announced(age_s, taken):
    """`a` had nobody else when it was last seen, and says now that 40 wait."""
    measured = Measured()
    measured.learn({"a": times()}, NOW - age_s)
    view = swarm(4, peer("a", 0, 4, queue=40), peer("b", 0, 4, 0.012))
    request = RouteRequest(0, 4, knowledge=measured.knowledge(view.columns, {"a": 0.02, "b": 0.02}, NOW))
    assert [plan_route(view, request, NOW, random.Random(seed)).hops[0].peer_id for seed in range(9)] == [taken] * 9


def test_failures_ban_at_once_and_good_sessions_forgive_slowly():
    measured = Measured()
    measured.failed(HopRefused("busy", Reason.BUSY, "full"), NOW)
    measured.failed(HopClosed("a", "gone"), NOW)
    seen = known(measured)
    assert seen.banned == {"a"}
    assert "busy" not in seen.penalties
    measured.served(["a"], NOW + 1)
    after = known(measured, NOW + 1)
    assert after.banned == {"a"}
    assert 1.0 < after.penalties["a"] < seen.penalties["a"]


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([1.0, 10.0, 100.0, 1e6]),
    st.sampled_from([1.0, 2.0, 10.0]),
    st.booleans(),
    st.integers(3, 8),
    st.integers(0, 2**32),
)
def test_who_claims_more_gains_at_most_a_third(claimed, slower, in_receipts, count, seed):
    """`claimed` times the others' speed, in truth `slower` than they; `in_receipts`: the lie goes on there."""
    truth_s, token_s = dict.fromkeys(peer_ids(count), 0.01), 0.05
    truth_s["peer0"] = 0.01 * slower
    view = swarm(4, *(peer(i, 0, 4, 0.01 / claimed if i == "peer0" else 0.01) for i in truth_s))
    taken, rtts = dict.fromkeys(truth_s, 0), dict.fromkeys(truth_s, token_s)
    for client in range(8):
        rng, measured = random.Random(seed + client), Measured()
        for request in range(50):
            now = NOW + request / 10
            plan = RouteRequest(0, 4, knowledge=measured.knowledge(view.columns, rtts, now))
            (hop,) = plan_route(view, plan, now, rng).hops
            taken[hop.peer_id] += 1
            took_s = 4 * truth_s[hop.peer_id]
            said_s = took_s / claimed if in_receipts and hop.peer_id == "peer0" else took_s
            measured.learn({hop.peer_id: times(4, said_s, client=token_s + 0.0005 + took_s)}, now)
    fair = sum(taken.values()) / count
    assert taken["peer0"] <= 1.33 * fair + 2.5 * math.sqrt(fair)  # chance alone moves it by sqrt(fair)


@pytest.mark.parametrize("rate", [1e9, 1.25e6, 2.5e5])
def test_a_slow_line_is_not_held_against_who_is_behind_it(rate):
    """Tokens of 16 KiB over the client's line of `rate` bytes/s, then over that of `first`: nobody hides anything, and
    a peer that was used counts like its twin."""
    names = ["first", "second", "twin"]
    view = swarm(8, peer("first", 0, 4, upload_bps=rate), peer("twin", 0, 4, upload_bps=rate), peer("second", 4, 8))
    seen = {"first": times(0), "second": times(0)}
    for name, before, way_s in (("first", "", 0.02), ("second", "first", 0.01)):
        for _ in range(32):
            seen[name].add(0.0, 0.04, 1, 4)
            seen[name].keeps(before, way_s + HOP_OVERHEAD_S + 16384 / rate, 16384)
    measured = Measured()
    measured.learn(seen, NOW)
    found = measured.knowledge(view.columns, dict.fromkeys(names, 0.02), NOW, rate)
    assert max(found.hidden_s.values()) < 1e-3
    request = RouteRequest(0, 8, knowledge=found, token_bytes=16384)
    first = Counter(plan_route(view, request, NOW, random.Random(seed)).hops[0].peer_id for seed in range(60))
    assert first["first"] >= 20
