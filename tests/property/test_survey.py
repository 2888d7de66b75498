"""Whose distances a peer measures that looks for a place: few of many, for all blocks alike, only who can answer."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from routing_swarms import NOW, peer, swarm, views
from shoal.routing.survey import worth_measuring
from shoal.routing.view import View


@settings(max_examples=40, deadline=None)
@given(views(max_peers=6, max_blocks=8), st.integers(1, 8), st.integers(0, 2**32))
def test_at_most_so_many_of_those_that_can_answer(view, most, seed):
    view = View(view.n_blocks, view.peers, NOW)
    able = {peer.peer_id for peer in view.peers if peer.state == "online" and peer.expiry > NOW}
    asked = [peer.peer_id for peer in worth_measuring(view, random.Random(seed), most)]
    assert len(asked) == len(set(asked)) == min(most, len(able))
    assert able.issuperset(asked)
    assert asked == [peer.peer_id for peer in worth_measuring(view, random.Random(seed), most)]


def test_of_many_every_block_has_its_share():
    """Nine of ten hold the first half."""
    crowd = [peer(f"peer{number:03}", *((0, 4) if number % 10 else (4, 8))) for number in range(400)]
    for seed in range(5):
        asked = worth_measuring(swarm(8, *crowd), random.Random(seed), 8)
        assert sorted(each.start for each in asked) == [0] * 4 + [4] * 4


def test_in_a_crowd_the_slow_are_left_out():
    crowd = [peer(f"peer{number:03}", 0, 4, 0.001 if number % 10 == 0 else 0.1) for number in range(400)]
    asked = worth_measuring(swarm(4, *crowd), random.Random(1), 4)
    assert [each.decode_s for each in asked] == [0.001] * 4
