"""A boundary between two hops that cannot reach one another goes through the client. No sockets."""

from __future__ import annotations

from dataclasses import replace

from shoal.client.actions import Apart, Blame, Deliver, Plan, Send
from shoal.client.apart import FIRST_S, LONGEST_S
from shoal.client.apart import Apart as Findings
from shoal.client.measured import Measured
from shoal.peer.errors import HopClosed, HopTimedOut, Reason
from shoal.peer.wire import Hidden, Open, Reroute, Want
from shoal.routing.route import Route
from shoal.routing.view import View
from test_session import HOPS, S, answer, epoch, make, only, opened, receipt, refused, sent, step, streaming


def ran(session, *peer_ids: str):
    """Hops have run step 0, so that their KV holds all that went before."""
    step(session)
    for peer_id in peer_ids:
        receipt(session, peer_id, 0)


def test_hops_that_cannot_reach_one_another_stay_and_the_client_carries_between_them():
    session = streaming()
    ran(session, "a", "b", "c")
    answer(session, "c", 0)
    number, _ = step(session)
    actions = refused(session, "a", Reason.NEXT_HOP_LOST)
    assert only(actions, Apart) == Apart("a", "b")
    told = {peer_id: (m.prev, m.next, m.next_addrs, m.replay_to) for peer_id, m in sent(actions, Reroute)}
    assert told == {"a": ("", "", (), 0), "b": ("", "c", ("/c",), 0), "c": ("b", "", (), 0)}
    assert session.route() == HOPS
    for peer_id in "cba":
        actions = opened(session, peer_id)
    assert [(peer_id, m.step) for peer_id, m in sent(actions, Hidden)] == [("a", number)]
    (passed,) = answer(session, "a", number)
    assert (passed.peer_id, passed.message.step, passed.message.epoch) == ("b", number, epoch(session))
    assert answer(session, "b", number) == []  # that pair talks to one another
    assert only(answer(session, "c", number), Deliver).step == number
    assert (session.stats.bridges, session.stats.repairs) == (1, 0)


def test_a_hop_that_has_run_nothing_yet_is_opened_anew_behind_a_boundary():
    session = streaming()
    ran(session, "a")
    actions = refused(session, "a", Reason.NEXT_HOP_LOST)
    assert [(peer_id, m.prev, m.next) for peer_id, m in sent(actions, Open)] == [("b", "", "c"), ("c", "b", "")]
    opened(session, "b")
    actions = opened(session, "c")
    assert [(peer_id, m.next) for peer_id, m in sent(actions, Reroute)] == [("a", "")]
    state = Hidden(
        session=S, epoch=epoch(session), step=0, position=0, count=1, want=Want.LAST, replay=True, rows=1, width=1,
        dtype="float32", payload=bytes(4),
    )  # fmt: skip
    assert session.on_message("a", state, 0.0) == [Send("b", state)]  # what refills it is carried too
    assert session.on_message("a", replace(state, replay=False), 0.0) == []  # steps come again


def test_a_pair_that_is_known_not_to_talk_is_opened_that_way():
    session = make(apart=lambda source, target: (source, target) == ("b", "c"))
    actions = session.on_route(Route(HOPS, 1.0), 0.0)
    told = [(m.prev, m.next, m.final) for _, m in sent(actions, Open)]
    assert told == [("", "b", False), ("a", "", False), ("", "", True)]


def test_a_hop_that_is_lost_behind_a_boundary_is_replaced():
    session = streaming(apart=lambda source, target: (source, target) == ("a", "b"))
    actions = refused(session, "a", Reason.NEXT_HOP_LOST)  # which says nothing of the client's own link
    assert only(actions, Blame).error.peer_id == "a"
    session = streaming(apart=lambda source, target: (source, target) == ("a", "b"))
    assert only(session.on_closed("b", "gone"), Plan).start == 2


def test_what_was_found_is_tried_again_after_a_while_and_longer_each_time():
    findings = Findings()
    findings.note("a", "b", 100.0)
    assert findings.pairs(100.0 + 0.9 * FIRST_S) == {("a", "b")}
    assert findings.pairs(100.0 + FIRST_S) == frozenset()
    findings.note("a", "b", 200.0)
    assert findings.pairs(200.0 + 1.9 * FIRST_S) == {("a", "b")}
    now = 200.0
    for _ in range(20):
        findings.note("a", "b", now)
        now = next(now + s for s in range(int(LONGEST_S) + 2) if not findings.pairs(now + s))
    assert now - 200.0 < 20 * LONGEST_S + 20
    findings.note("a", "b", now + 2 * LONGEST_S)  # long ago: like the first time
    assert not findings.pairs(now + 2 * LONGEST_S + FIRST_S)


def test_planning_is_told_who_is_apart_unless_it_was_a_death():
    measured = Measured()
    measured.apart.note("a", "b", 0.0)
    measured.apart.note("b", "c", 0.0)
    measured.apart.note("c", "d", 0.0)
    measured.failed(HopTimedOut("d", "late"), 1.0)
    assert measured.knowledge(View(4).columns, {}, 1.0).via_client == {("a", "b"), ("b", "c"), ("c", "d")}
    measured.failed(HopClosed("b", "reset"), 1.0)
    assert measured.knowledge(View(4).columns, {}, 1.0).via_client == {("c", "d")}
