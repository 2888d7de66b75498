"""What the swarm page is told: lost peers hold nothing, measured speeds win, and many peers are cut without lying."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from shoal.client.generation import Piece
from shoal.client.serving import Answer
from shoal.client.web.picture import MOST_SHOWN, Scene, picture
from shoal.routing.announcement import Announcement
from shoal.routing.knowledge import Knowledge, Speed
from shoal.routing.route import Hop
from shoal.routing.view import View

NOW = 1_800_000_000.0


class Seen:
    """What is asked of a `Presence`."""

    def __init__(self, **lost):
        self.lost = lost

    def of(self, peer_id):
        return self.lost.get(peer_id, "here")

    def there(self, view):
        return replace(view, peers=tuple(peer for peer in view.peers if peer.peer_id not in self.lost))


def peer(peer_id, start, stop, **other):
    made = Announcement(
        peer_id, 1, NOW + 40, start, stop, "online", "nf4", "bfloat16", 0.002, 0.0005, 1, 4096, 512, (), (), "0.1.0",
        "<b>attic</b>", "r1",
    )  # fmt: skip
    return replace(made, **other)


def scene(peers, **other):
    made = Scene("demo", NOW, View(6, tuple(peers), NOW), Knowledge(), Seen(), {}, 0, None, 0.0)
    return replace(made, **other)


def test_a_lost_peer_is_shown_and_holds_nothing():
    shown = picture(scene([peer("a", 0, 4), peer("b", 2, 6)], presence=Seen(b="lost")))
    assert shown["coverage"] == [1, 1, 1, 1, 0, 0]
    assert shown["missing"] == [4, 5]
    assert [(one["peer"], one["seen"]) for one in shown["peers"]] == [("a", "here"), ("b", "lost")]


def test_measured_speeds_win_and_others_are_marked_as_announced():
    knowledge = Knowledge(
        rtts_s={"a": 0.0123}, speeds={"a": Speed(0.001, math.nan), "b": Speed(math.nan, math.nan)}, banned={"b"}
    )
    a, b = picture(scene([peer("a", 0, 4), peer("b", 2, 6)], knowledge=knowledge))["peers"]
    assert (a["token_ms"], a["token_measured"], a["rtt_ms"], a["avoided"]) == (4.0, True, 12.3, False)
    assert (b["token_ms"], b["token_measured"], b["rtt_ms"], b["avoided"]) == (8.0, False, None, True)
    assert b["prompt_tokens_per_s"] == 500


def test_of_many_peers_those_on_the_route_are_shown_and_all_are_counted():
    many = [peer(f"p{n:04}", 0, 6) for n in range(MOST_SHOWN + 50)]
    last = Answer(0.0, [Piece(1, "x", 0.0, 1.0), Piece(2, "y", 0.0, 1.5, "stop")], route=(Hop("p0249", 0, 6),))
    shown = picture(scene(many, last=last, since_s=60.0))
    assert len(shown["peers"]) == MOST_SHOWN
    assert "p0249" in {one["peer"] for one in shown["peers"]}
    assert shown["hidden_peers"] == 50
    assert shown["coverage"] == [MOST_SHOWN + 50] * 6
    assert shown["last"]["at"] == NOW - 60
    assert (shown["last"]["tokens"], shown["last"]["tokens_per_s"], shown["last"]["ttft_s"]) == (2, 2.0, 1.0)
    json.dumps(shown, allow_nan=False)


def test_an_empty_swarm_lacks_everything():
    shown = picture(scene([]))
    assert shown["missing"] == list(range(6))
    assert (shown["peers"], shown["last"], shown["revision"]) == ([], None, None)
