"""Folding announcements into a view: order and repetition change nothing, the newest word of each peer holds."""

from __future__ import annotations

import dataclasses
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from routing_swarms import NOW, peer, peer_ids, swarm, views
from shoal.dht.record import Record
from shoal.routing.announcement import encode
from shoal.routing.view import View, fold, fold_records

SPANS = st.tuples(st.integers(0, 9), st.integers(1, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))
PEERS = st.builds(
    lambda peer_id, span, sequence, expiry: peer(peer_id, *span, sequence=sequence, expiry=expiry),
    st.sampled_from(peer_ids(3)),
    SPANS,
    st.integers(1, 3),
    st.sampled_from([NOW - 1, NOW, NOW + 1, NOW + 60]),
)


def unique(announcements):
    """A peer signs one announcement per sequence number."""
    return list({(each.peer_id, each.sequence): each for each in announcements}.values())


@settings(max_examples=100, deadline=None)
@given(st.lists(PEERS, max_size=12).map(unique), st.integers(0, 2**32))
def test_fold_keeps_the_newest_of_each_and_ignores_order(announcements, seed):
    view = swarm(10, *announcements)
    shuffled = random.Random(seed).sample(announcements, len(announcements))
    assert fold(View(10), shuffled, NOW) == view
    assert fold(view, shuffled, NOW) == view
    for peer_id in peer_ids(3):
        newest = max((a for a in announcements if a.peer_id == peer_id), key=lambda a: a.sequence, default=None)
        kept = [a for a in view.peers if a.peer_id == peer_id]
        assert kept == ([newest] if newest and newest.expiry > NOW and newest.stop <= 10 else [])


@settings(max_examples=60, deadline=None)
@given(views(max_peers=6, max_blocks=8))
def test_coverage_holders_and_missing_agree(view):
    assert view.coverage() == [len(view.holders(block)) for block in range(view.n_blocks)]
    assert view.missing() == [block for block in range(view.n_blocks) if not view.holders(block)]


def test_peers_expire_when_the_view_is_folded_again():
    view = swarm(4, peer("a", 0, 4, expiry=NOW + 10), peer("b", 0, 4, expiry=NOW + 20))
    assert [p.peer_id for p in fold(view, (), NOW + 10).peers] == ["b"]


def test_only_online_peers_hold_blocks():
    view = swarm(4, peer("a", 0, 2, state="joining"), peer("b", 1, 3), peer("c", 2, 4, state="draining"))
    assert view.missing() == [0, 3]
    assert [p.peer_id for p in view.holders(1)] == ["b"]


def test_without_leaves_one_out():
    view = swarm(4, peer("a", 0, 2), peer("b", 1, 3))
    assert view.without("a") == swarm(4, peer("b", 1, 3))


def record_of(announcement, body: bytes | None = None, **fields) -> Record:
    sealed = encode(announcement) if body is None else body
    record = Record(b"", "m", "r", announcement.peer_id, announcement.sequence, announcement.expiry, sealed)
    return dataclasses.replace(record, **fields)


def test_records_fold_and_what_is_no_announcement_is_skipped():
    a, b = peer("a", 0, 4), peer("b", 2, 10)
    view = fold_records(View(10), [record_of(a), record_of(b), record_of(peer("c", 0, 1), b"\xc1")], NOW)
    assert view == swarm(10, a, b)


def test_an_empty_record_withdraws_what_came_before_it():
    a, b = peer("a", 0, 4, sequence=5), peer("b", 2, 10, sequence=5)
    known = fold_records(View(10), [record_of(a), record_of(b)], NOW)
    gone = fold_records(known, [record_of(a, b"", sequence=6), record_of(b, b"", sequence=4)], NOW)
    assert gone == swarm(10, b)
    back = dataclasses.replace(a, sequence=7)
    assert fold_records(gone, [record_of(back), record_of(a, b"", sequence=6)], NOW) == swarm(10, back, b)
