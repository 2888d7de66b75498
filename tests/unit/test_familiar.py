"""What a client remembers of who holds which prompt's beginning, and when it goes there."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from shoal.client import familiar
from shoal.client.familiar import Familiar, Known, familiar_route
from shoal.routing.planner import plan_route
from shoal.routing.route import Hop, RouteRequest

from tests.property.routing_swarms import NOW, peer, swarm

HOPS, OTHERS = (Hop("a", 0, 4), Hop("b", 4, 6)), (Hop("c", 0, 6),)
GROUPS = [bytes([n]) * 16 for n in range(5)]


def test_the_longest_beginning_that_is_known_counts() -> None:
    it = Familiar()
    it.note(GROUPS[:2], HOPS)
    it.note(GROUPS[:1], OTHERS)
    assert it.find(GROUPS) == Known(HOPS, 128)
    assert it.find(GROUPS[:1]) == Known(OTHERS, 64)
    assert it.find([b"x" * 16]) is None
    assert it.find([]) is None


def test_what_was_used_least_lately_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(familiar, "MAX_GROUPS", 3)
    it = Familiar()
    it.note(GROUPS[:3], HOPS)
    it.note(GROUPS[:1], HOPS)
    it.note(GROUPS[3:4], HOPS)
    assert [it.find([group]) is not None for group in GROUPS] == [True, False, True, True, False]


PEERS = (peer("a", 0, 5), peer("b", 3, 6), peer("c", 0, 6, 0.011))
REQUEST = RouteRequest(0, 6, prompt_tokens=1000, new_tokens=1)


def route(held: int):
    return familiar_route(swarm(6, *PEERS), REQUEST, Known(HOPS, held), NOW, random.Random(1))


def test_the_very_hops_are_priced_without_what_they_hold() -> None:
    found = route(960)
    assert found.hops == HOPS
    anew = plan_route(swarm(6, *PEERS), REQUEST, NOW, random.Random(1))
    assert found.expected_s < anew.expected_s / 5
    assert found.token_s == pytest.approx(route(64).token_s)


@pytest.mark.parametrize(
    ("peers", "request_"),
    [
        (PEERS[1:], REQUEST),
        ((replace(PEERS[0], stop=3), *PEERS[1:]), REQUEST),
        ((replace(PEERS[0], state="draining"), *PEERS[1:]), REQUEST),
        (PEERS, replace(REQUEST, avoid=frozenset("b"))),
        ((*PEERS[:2], replace(PEERS[2], stop=8)), replace(REQUEST, stop=8)),
    ],
    ids=["gone", "moved", "leaving", "avoided", "too short"],
)
def test_hops_that_are_not_to_be_had_are_no_route(peers, request_) -> None:
    view = swarm(max(request_.stop, 6), *peers)
    assert familiar_route(view, request_, Known(HOPS, 960), NOW, random.Random(1)) is None
