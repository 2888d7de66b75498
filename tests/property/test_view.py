"""Folding announcements into a view: order and repetition change nothing, the newest word of each peer holds."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_swarms import NOW, announcements, peer, peer_ids, swarm, views
from shoal.dht.record import Record
from shoal.routing.announcement import Announcement, encode
from shoal.routing.columns import Columns, columns_of
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


@st.composite
def changes(draw, view: View) -> list[Announcement]:
    """Announcements that come after those of `view`: of peers that are there, and of others."""
    ids = [f"peer{number}" for number in range(9)]
    named = draw(st.lists(st.sampled_from(ids), max_size=4, unique=True))
    found = [draw(announcements(name, ids, view.n_blocks)) for name in named]
    return [dataclasses.replace(each, sequence=draw(st.integers(1, 3))) for each in found]


def same(a: Columns, b: Columns) -> bool:
    pairs = ((getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(Columns))
    arrays = all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs if isinstance(x, np.ndarray))
    rest = all(getattr(a, name) == getattr(b, name) for name in ("peers", "ids", "index", "rtts_s", "rates"))
    return arrays and rest


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_columns_made_from_former_ones_are_those_made_from_nothing(data):
    view = data.draw(views(max_peers=7, max_blocks=5))
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()):
            _ = view.columns  # not every view is planned over
        if view.peers and data.draw(st.booleans()):
            view = view.without(data.draw(st.sampled_from(view.peers)).peer_id)
        view = fold(view, data.draw(changes(view)), data.draw(st.sampled_from([NOW - 100, NOW - 1, NOW])))
        assert same(view.columns, columns_of(view.peers))


def test_a_view_in_which_little_changed_makes_little_anew():
    crowd = [peer(f"peer{number:02}", 0, 4, rtts=(("near", 0.01),)) for number in range(40)]
    before = swarm(4, *crowd)
    rows = before.columns.rtts_s
    changed = dataclasses.replace(crowd[7], sequence=2, rtts=(("near", 0.02),))
    after = fold(before, [*crowd, changed, peer("peer99", 1, 3)], NOW + 1).without("peer30").columns
    assert [a is b for a, b in zip(after.rtts_s, rows[:30] + rows[31:], strict=False)] == [i != 7 for i in range(39)]
    assert after.rtts_s[7] == {"near": 0.02}
    assert (after.ids[-1], after.start[-1], after.index["peer99"]) == ("peer99", 1, 39)
