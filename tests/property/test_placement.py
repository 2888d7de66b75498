"""Placement: gaps first, then the bottleneck, then time per token; it says why, and the same for the same seed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_swarms import ABSURD, NOW, peer, peer_ids, swarm, views
from shoal.routing.knowledge import Knowledge, Speed
from shoal.routing.placement import Placement, gain_of, place_span
from shoal.routing.view import View

ME = Speed(0.01, 0.001)


def place(view: View, capacity: int, seed: int = 0, knowledge: Knowledge | None = None) -> Placement:
    return place_span(view, capacity, ME, NOW, random.Random(seed), knowledge)


def throughput(view: View, *extra) -> list[float]:
    """Tokens/s per block, claims bounded by the median, or by what this peer itself does, in plain Python."""
    alive = [p for p in view.peers if p.state in ("online", "joining") and p.expiry > NOW]
    claims = sorted(p.decode_s for p in view.peers if p.state == "online")
    floor = min(claims[len(claims) // 2], ME.decode_s) * 0.75 if claims else 0.0
    held = [(p.start, p.stop, max(p.decode_s, floor)) for p in alive] + list(extra)
    return [sum(1 / (s * (hi - lo)) for lo, hi, s in held if lo <= b < hi) for b in range(view.n_blocks)]


@settings(max_examples=120, deadline=None)
@given(views(max_peers=6, max_blocks=8), st.integers(1, 10), st.integers(0, 2**32))
def test_no_other_span_covers_more_or_lifts_the_bottleneck_higher(view, capacity, seed):
    found = place(view, capacity, seed)
    length = min(capacity, view.n_blocks)
    assert found.stop - found.start == length
    assert 0 <= found.start < found.stop <= view.n_blocks
    assert found.reason
    after = throughput(view, (found.start, found.stop, ME.decode_s))
    assert found.bottleneck_before == pytest.approx(min(throughput(view)))
    assert found.bottleneck_after == pytest.approx(min(after))
    for start in range(view.n_blocks - length + 1):
        other = throughput(view, (start, start + length, ME.decode_s))
        assert after.count(0) <= other.count(0)
        assert min(after) >= min(other) * 0.98 or after.count(0) < other.count(0)
    assert found == place(View(view.n_blocks, view.peers, view.at), capacity, seed)


@settings(max_examples=40, deadline=None)
@given(views(max_peers=5, max_blocks=6, seconds=st.sampled_from(ABSURD)), st.sampled_from(ABSURD), st.integers(1, 7))
def test_absurd_figures_never_raise(view, mine_s, capacity):
    knowledge = Knowledge(rtts_s=dict.fromkeys(peer_ids(3), mine_s), default_leg_s=mine_s)
    found = place_span(view, capacity, Speed(mine_s, mine_s), NOW, random.Random(0), knowledge)
    assert 0 <= found.start < found.stop <= view.n_blocks


def test_a_gap_comes_first_and_is_named():
    view = swarm(12, peer("a", 0, 8, 0.5), peer("b", 0, 4))
    found = place(view, 4)
    assert (found.start, found.stop) == (8, 12)
    assert found.reason == "blocks 8-11 have no holder"
    assert found.bottleneck_before == 0
    assert found.bottleneck_after > 0


def test_a_gap_that_is_too_wide_is_begun_without_splinters():
    starts = {place(swarm(12), 4, seed).start for seed in range(30)}
    assert starts == {0, 8}
    assert place(swarm(12), 4).reason.endswith("still have none")


def test_the_slowest_blocks_are_strengthened():
    view = swarm(12, peer("a", 0, 6), peer("b", 6, 12), peer("c", 0, 6))
    found = place(view, 6)
    assert (found.start, found.stop) == (6, 12)
    assert "blocks 6-11 hold the swarm back: 16.7 tokens/s now, 33.3 with this peer" in found.reason


def test_who_is_joining_counts_and_who_leaves_does_not():
    view = swarm(8, peer("a", 0, 4, state="joining"), peer("b", 4, 8, state="draining"))
    assert place(view, 4).start == 4


def test_equal_throughput_is_settled_by_distance():
    """Two halves, equally served; this peer is near the holders of the second half, so a token gains by it there."""
    view = swarm(8, peer("a", 0, 4), peer("b", 4, 8), peer("c", 0, 4), peer("d", 4, 8))
    near = Knowledge(rtts_s={"a": 0.0004, "c": 0.0004, "b": 0.4, "d": 0.4})
    assert {place(view, 4, seed, near).start for seed in range(10)} == {4}


def test_the_time_a_token_saves_is_told():
    view = swarm(4, peer("slow", 0, 4, 0.2), peer("slower", 0, 4, 0.3))
    found = place(view, 4)
    assert found.reason.endswith("ms instead of 850")  # what `slow` says is believed of it: this peer is faster yet


def test_a_fast_peer_believes_in_others_as_fast_as_itself():
    """A GPU among CPUs counted as one of them would be helped where it needs no help."""
    cpus = [peer(f"cpu{number}", 0, 8, 0.05) for number in range(3)]
    gpus = [peer("gpu0", 0, 4, 0.001), peer("gpu1", 4, 8, 0.001), peer("gpu2", 0, 4, 0.001)]
    found = place_span(swarm(8, *cpus, *gpus), 4, Speed(0.001, 0.001), NOW, random.Random(0))
    assert found.start == 4
    assert found.bottleneck_before == pytest.approx(3 / (0.05 * 8) + 1 / (0.001 * 4))


def test_a_peer_that_holds_the_whole_model_holds_it_all():
    assert (place(swarm(3), 10).start, place(swarm(3), 10).stop) == (0, 3)


def test_without_room_for_a_block_there_is_no_place():
    with pytest.raises(ValueError, match="at least one block"):
        place(swarm(3), 0)


def test_joining_one_after_the_other_covers_everything_evenly():
    """Twelve peers join a model of 12 blocks: the bottleneck is at least 3/4 of the even share of all throughput."""
    peers = []
    for i in range(12):
        found = place(swarm(12, *peers), 4, seed=i)
        peers.append(peer(f"peer{i:02}", found.start, found.stop))
    even = 12 * (1 / (ME.decode_s * 4)) * 4 / 12
    assert min(throughput(swarm(12, *peers))) >= 0.75 * even


def test_a_small_peer_strengthens_the_slowest_blocks_of_a_big_swarm():
    """What it adds is under one percent of what is there, and still goes where it is short."""
    crowd = [peer(f"peer{i:03}", 0, 4) for i in range(300)] + [peer(f"peer{i}", 4, 8) for i in range(400, 690)]
    assert place(swarm(8, *crowd), 4).start == 4


def test_what_a_swarm_gains_is_what_placement_says():
    view = swarm(12, peer("a", 0, 6), peer("b", 6, 12), peer("c", 0, 6))
    found = place(view, 6)
    gain = gain_of(view, found.start, found.stop, ME)
    assert (gain.bottleneck_before, gain.bottleneck_after) == (found.bottleneck_before, found.bottleneck_after)
    assert gain.token_before_s == pytest.approx(3 * 0.025 + 2 * 0.0005 + 12 * 0.01)
    assert gain.token_after_s == pytest.approx(gain.token_before_s)
    alone = gain_of(swarm(12, peer("a", 0, 6)), 6, 12, ME)
    assert alone.bottleneck_before == 0
    assert alone.token_before_s is None
    assert alone.token_after_s == pytest.approx(3 * 0.025 + 2 * 0.0005 + 12 * 0.01)
