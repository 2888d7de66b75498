"""The session's decisions, one at a time: opening, streaming, repair, timers, refusals, the end. No sockets."""

from __future__ import annotations

import pytest
from shoal.client.actions import Blame, Deliver, GiveUp, Plan, Send, SessionTerms
from shoal.client.prefix import Prefix, Prompt
from shoal.client.session import MAX_STARTS_OVER, Session, State
from shoal.client.steps import MAX_IN_FLIGHT, REPLAY_TOKENS
from shoal.peer.errors import HopClosed, HopRefused, HopTimedOut, Reason
from shoal.peer.wire import Close, Hidden, Open, Opened, Receipt, Refused, Reroute, Want
from shoal.routing.route import Hop, Route

S = b"s" * 16
PREFIX = Prefix(Prompt(tuple(range(200))), b"secret", (), lambda peer_id: "none")
HOPS = (Hop("a", 0, 2), Hop("b", 2, 4), Hop("c", 4, 6))


def make(max_tokens: int = 2000, **more) -> Session:
    terms = SessionTerms(
        session=S, namespace=b"n" * 32, revision="r", start=0, stop=6, max_tokens=max_tokens, width=1, dtype="float32",
        prove=lambda peer_id: b"", addrs=lambda peer_id: (f"/{peer_id}",), open_timeout_s=10.0, step_timeout_s=120.0,
        **more,
    )  # fmt: skip
    session = Session(terms, lambda a, b: bytes(4 * (b - a)))
    assert session.begin() == [Plan(0, 6, frozenset(), None, None)]
    return session


def sent(actions, kind) -> list[tuple[str, object]]:
    return [(a.peer_id, a.message) for a in actions if isinstance(a, Send) and isinstance(a.message, kind)]


def only(actions, kind):
    (found,) = [action for action in actions if isinstance(action, kind)]
    return found


def epoch(session: Session) -> int:
    return session._chain.epoch


def opened(session: Session, peer_id: str, now: float = 0.0, cached: int = 0):
    return session.on_message(peer_id, Opened(session=S, epoch=epoch(session), cached=cached), now)


def refused(session: Session, peer_id: str, reason: Reason):
    message = Refused(session=S, epoch=epoch(session), reason=reason, text="no", retry_s=0.0)
    return session.on_message(peer_id, message, 0.0)


def answer(session: Session, peer_id: str, step: int, rows: int = 1, now: float = 0.0, **changes):
    fields = {"epoch": epoch(session), "position": 0, "count": max(rows, 1), "want": Want.LAST, "width": 1}
    fields |= {"dtype": "float32", **changes}
    fields.setdefault("payload", bytes(4 * rows * fields["width"]))
    return session.on_message(peer_id, Hidden(session=S, step=step, replay=False, rows=rows, **fields), now)


def receipt(session: Session, peer_id: str, step: int, now: float = 0.0):
    message = Receipt(session=S, epoch=epoch(session), step=step, queue_s=0.5, compute_s=0.25)
    return session.on_message(peer_id, message, now)


def step(session: Session, count: int = 1, want: Want = Want.LAST, now: float = 0.0):
    return session.step(count, want, bytes(4 * count), now)


def streaming(hops=HOPS, cached=(0, 0, 0), **terms) -> Session:
    session = make(**terms)
    session.on_route(Route(hops, 1.0), 0.0)
    for hop, tokens in zip(hops, cached, strict=True):
        opened(session, hop.peer_id, cached=tokens)
    assert session.state is State.STREAMING
    return session


# -- opening -----------------------------------------------------------------------------------------------------------


def test_every_hop_is_opened_with_its_neighbours():
    session = make()
    opens = dict(sent(session.on_route(Route(HOPS, 1.0), 0.0), Open))
    assert session.state is State.OPENING
    assert [(o.prev, o.next, o.next_addrs, o.final, o.forward_replay) for o in opens.values()] == [
        ("", "b", ("/b",), False, True),
        ("a", "c", ("/c",), False, True),
        ("b", "", (), True, False),
    ]
    assert [(o.start, o.stop) for o in opens.values()] == [(0, 2), (2, 4), (4, 6)]


def test_steps_wait_for_the_last_hop_to_open():
    session = make()
    session.on_route(Route(HOPS, 1.0), 0.0)
    number, actions = step(session)
    assert actions == []
    assert opened(session, "a") == opened(session, "c") == []
    ((peer_id, message),) = sent(opened(session, "b"), Hidden)
    assert (peer_id, message.step, message.replay) == ("a", number, False)


def test_an_answer_is_delivered_once():
    session = streaming()
    number, _ = step(session)
    assert answer(session, "a", number) == answer(session, "b", number) == []  # not theirs to give
    assert answer(session, "c", number) == [Deliver(number, 1, bytes(4))]
    assert answer(session, "c", number) == []


def test_a_step_without_an_answer_is_done_with_the_last_hops_receipt():
    session = streaming()
    number, _ = step(session, 3, Want.NONE)
    assert receipt(session, "a", number) == receipt(session, "b", number) == []
    assert receipt(session, "c", number) == [Deliver(number, 0, b"")]
    assert (session.stats.hops["b"].queue_s, session.stats.hops["b"].compute_s) == (0.5, 0.25)


@pytest.mark.parametrize("changes", [{"rows": 2}, {"rows": 0}, {"width": 2}, {"dtype": "float16", "payload": bytes(2)}])
def test_an_answer_in_another_shape_loses_the_hop(changes):
    session = streaming()
    number, _ = step(session)
    actions = answer(session, "c", number, **{"rows": 1, **changes})
    assert isinstance(only(actions, Blame).error, HopRefused)
    assert only(actions, Plan).start == 4
    assert not any(isinstance(action, Deliver) for action in actions)


def test_messages_of_strangers_and_of_other_epochs_are_ignored():
    session = streaming()
    number, _ = step(session)
    assert answer(session, "x", number) == []
    assert answer(session, "c", number, epoch=epoch(session) + 1) == []
    session.on_closed("b", "gone")
    assert answer(session, "c", number, epoch=epoch(session) - 1) == []


def test_no_more_steps_in_flight_than_hops_remember():
    session = streaming()
    for _ in range(MAX_IN_FLIGHT):
        assert not session.full()
        step(session)
    assert session.full()
    answer(session, "c", 0)
    assert not session.full()


def test_the_agreed_tokens_are_a_bound():
    session = streaming(max_tokens=4)
    step(session, 3)
    with pytest.raises(ValueError, match="4 tokens"):
        step(session, 2)
    step(session, 1)


def test_the_position_can_be_set_back_between_steps():
    session = streaming()
    number, _ = step(session, 5)
    with pytest.raises(ValueError, match="in flight"):
        session.rewind(2)
    answer(session, "c", number)
    with pytest.raises(ValueError, match="cannot"):
        session.rewind(6)
    session.rewind(2)
    ((_, message),) = sent(step(session)[1], Hidden)
    assert message.position == 2


# -- repair ------------------------------------------------------------------------------------------------------------


def test_a_lost_hop_is_planned_between_the_survivors_and_refilled_by_the_one_before():
    session = streaming()
    answer(session, "c", step(session, 7)[0])
    number, _ = step(session)
    actions = session.on_closed("b", "b is gone")
    assert isinstance(only(actions, Blame).error, HopClosed)
    assert only(actions, Plan) == Plan(2, 4, frozenset("abc"), "a", "c")
    assert sent(actions, Close) == []  # nobody is there
    ((peer_id, request),) = sent(session.on_route(Route((Hop("d", 2, 4),), 1.0), 0.0), Open)
    assert (peer_id, request.prev, request.next, request.next_step) == ("d", "a", "c", number)
    assert not request.forward_replay
    reroutes = dict(sent(opened(session, "d"), Reroute))
    assert {p: (m.prev, m.next, m.replay_to) for p, m in reroutes.items()} == {"a": ("", "d", 7), "c": ("d", "", 0)}
    assert opened(session, "a") == []
    ((peer_id, again),) = sent(opened(session, "c"), Hidden)
    assert (peer_id, again.step, again.position, again.replay) == ("a", number, 7, False)
    assert answer(session, "c", number) == [Deliver(number, 1, bytes(4))]


def test_a_lost_first_hop_is_refilled_from_the_clients_inputs():
    session = streaming()
    count = REPLAY_TOKENS + 5
    answer(session, "c", step(session, count)[0])
    session.on_closed("a", "gone")
    session.on_route(Route((Hop("d", 0, 2),), 1.0), 0.0)
    assert set(dict(sent(opened(session, "d"), Reroute))) == {"b", "c"}
    opened(session, "b")
    replays = sent(opened(session, "c"), Hidden)
    assert [(p, m.replay, m.position, m.count) for p, m in replays] == [
        ("d", True, 0, REPLAY_TOKENS),
        ("d", True, REPLAY_TOKENS, 5),
    ]


def test_an_answer_that_comes_while_survivors_are_told_is_not_taken():
    """The new hop was told the first open step: were it answered now, the next one would be a gap to that hop."""
    session = streaming()
    number, _ = step(session)
    session.on_closed("a", "gone")
    session.on_route(Route((Hop("d", 0, 2),), 1.0), 0.0)
    opened(session, "d")
    opened(session, "c")
    assert answer(session, "c", number) == []
    assert [m.step for _, m in sent(opened(session, "b"), Hidden)] == [number]
    assert answer(session, "c", number) == [Deliver(number, 1, bytes(4))]


def test_hops_of_an_unfinished_repair_are_given_up_together():
    session = streaming()
    session.on_closed("b", "gone")
    session.on_route(Route((Hop("d", 2, 3), Hop("e", 3, 4)), 1.0), 0.0)
    opened(session, "d")
    actions = refused(session, "e", Reason.BUSY)
    assert {peer_id for peer_id, _ in sent(actions, Close)} == {"d", "e"}
    assert only(actions, Plan).start == 2
    assert only(actions, Plan).stop == 4
    assert session.route() == (HOPS[0], HOPS[2])


def test_a_survivor_lost_while_a_plan_is_made_widens_it():
    session = streaming()
    session.on_closed("b", "gone")
    plan = only(session.on_closed("c", "gone"), Plan)
    assert (plan.start, plan.stop, plan.downstream) == (2, 6, None)


@pytest.mark.parametrize("reason", [Reason.NO_REPLAY, Reason.GAP])
def test_where_history_is_missing_the_whole_route_is_opened_anew(reason):
    session = streaming()
    actions = refused(session, "b", reason)
    assert {peer_id for peer_id, _ in sent(actions, Close)} == {"a", "b", "c"}
    plan = only(actions, Plan)
    assert (plan.start, plan.stop) == (0, 6)
    assert not plan.avoid  # nobody is to blame
    assert not any(isinstance(action, Blame) for action in actions)


@pytest.mark.parametrize("reason", sorted(set(Reason) - {Reason.NO_REPLAY, Reason.GAP, Reason.NEXT_HOP_LOST}))
def test_a_hop_that_refuses_is_closed_and_replaced(reason):
    session = streaming()
    actions = refused(session, "b", reason)
    assert only(actions, Blame).error.reason is reason
    assert [peer_id for peer_id, _ in sent(actions, Close)] == ["b"]
    assert "b" in only(actions, Plan).avoid


def test_failed_peers_are_forgiven_on_request():
    session = streaming()
    assert only(session.on_closed("b", "gone"), Plan).avoid == frozenset("abc")
    assert session.forgive().avoid == frozenset("ac")


def start_over(session: Session) -> list[object]:
    """A hop says that it cannot go on from what it keeps."""
    text = Refused(session=S, epoch=epoch(session), reason=Reason.NO_REPLAY, text="gone", retry_s=0.0)
    return session.on_message("a", text, 0.0)


def test_new_beginnings_that_bring_nothing_end_the_session():
    session = streaming()
    for _ in range(MAX_STARTS_OVER):
        assert not any(isinstance(action, GiveUp) for action in session.start_over())
        session.on_route(Route(HOPS, 1.0), 0.0)
    actions = session.start_over()
    assert str(MAX_STARTS_OVER) in only(actions, GiveUp).reason
    assert session.state is State.CLOSED
    assert {peer_id for peer_id, _ in sent(actions, Close)} == {"a", "b", "c"}


@pytest.mark.parametrize("reason", [Reason.GAP, Reason.NO_REPLAY])
def test_who_lacks_again_what_it_was_given_is_taken_for_lost(reason):
    session = streaming()
    step(session)
    assert not any(isinstance(action, Blame) for action in refused(session, "b", reason))  # it may be right, once
    session.on_route(Route(HOPS, 1.0), 0.0)
    for peer_id in "abc":
        opened(session, peer_id)
    actions = refused(session, "b", reason)
    assert only(actions, Blame).error.peer_id == "b"
    assert "b" in only(actions, Plan).avoid


def test_answers_renew_the_patience_with_new_beginnings():
    session = streaming()
    for _ in range(2 * MAX_STARTS_OVER):
        number, _ = step(session)
        assert not any(isinstance(action, GiveUp) for action in start_over(session))
        session.on_route(Route(HOPS, 1.0), 0.0)
        for peer_id in "abc":
            opened(session, peer_id)
        assert answer(session, "c", number)


def test_epochs_grow_with_every_repair():
    session, seen = streaming(), []
    for _ in range(4):
        session.on_closed("b", "gone")
        ((_, request),) = sent(session.on_route(Route((Hop("b", 2, 4),), 1.0), 0.0), Open)
        seen.append(request.epoch)
    assert seen == sorted(set(seen))
    assert seen[0] > 0


# -- what hops hold from before ----------------------------------------------------------------------------------------


def test_hops_get_the_names_of_the_prompts_beginnings_and_the_priority():
    session = make(prefix=PREFIX, priority=1)
    opens = dict(sent(session.on_route(Route(HOPS, 1.0), 0.0), Open))
    assert [request.prefix for request in opens.values()] == [PREFIX.keys(HOPS[:n]) for n in range(3)]
    assert {len(request.prefix) for request in opens.values()} == {3}
    assert {request.priority for request in opens.values()} == {1}


def test_steps_begin_behind_what_every_hop_holds():
    session = streaming(cached=(192, 64, 128), prefix=PREFIX)
    assert session.position == session.stats.cached_tokens == 64
    ((_, message),) = sent(session.step(136, Want.LAST, bytes(4 * 136), 0.0, 200)[1], Hidden)
    assert (message.step, message.position, message.count, message.length) == (0, 64, 136, 200)


def test_a_hop_that_holds_nothing_means_a_beginning_at_0():
    session = streaming(cached=(192, 0, 128), prefix=PREFIX)
    assert session.position == session.stats.cached_tokens == 0


def test_a_step_that_does_not_wait_for_the_hops_begins_at_0():
    session = make(prefix=PREFIX)
    number, _ = step(session, 3)
    assert all(not request.prefix for _, request in sent(session.on_route(Route(HOPS, 1.0), 0.0), Open))
    for peer_id in "ab":
        opened(session, peer_id)
    ((_, message),) = sent(opened(session, "c"), Hidden)
    assert (message.step, message.position, session.position) == (number, 0, 3)


@pytest.mark.parametrize("cached", [256, 63, 1])
def test_a_hop_that_claims_what_it_cannot_hold_is_lost(cached):
    session = make(prefix=PREFIX)
    session.on_route(Route(HOPS, 1.0), 0.0)
    actions = opened(session, "b", cached=cached)
    assert only(actions, Blame).error.reason is Reason.BAD_OUTPUT
    assert "b" in only(actions, Plan).avoid
    assert session.position == 0


def test_a_refusal_before_the_first_step_asks_the_next_route_for_the_prefix_too():
    session = make(prefix=PREFIX)
    session.on_route(Route(HOPS, 1.0), 0.0)
    opened(session, "a", cached=192)
    refused(session, "b", Reason.BUSY)
    others = (HOPS[0], Hop("d", 2, 4), HOPS[2])
    opens = dict(sent(session.on_route(Route(others, 1.0), 0.0), Open))
    assert [request.prefix for request in opens.values()] == [PREFIX.keys(others[:n]) for n in range(3)]


def test_where_no_survivor_keeps_the_beginning_the_client_refills_from_the_first_block_to_the_loss():
    session = streaming(cached=(128, 128, 128), prefix=PREFIX)
    answer(session, "c", session.step(72, Want.LAST, bytes(4 * 72), 0.0, 200)[0])
    number, _ = step(session)
    actions = session.on_closed("b", "gone")
    assert only(actions, Plan) == Plan(0, 4, frozenset("bc"), None, "c")
    assert [peer_id for peer_id, _ in sent(actions, Close)] == ["a"]
    opens = dict(sent(session.on_route(Route((HOPS[0], Hop("d", 2, 4)), 1.0), 0.0), Open))
    assert all(not request.prefix for request in opens.values())  # what they would hold is not where replay begins
    opened(session, "a")
    assert {p: m.replay_to for p, m in sent(opened(session, "d"), Reroute)} == {"c": 0}
    messages = sent(opened(session, "c"), Hidden)
    assert [(p, m.replay, m.position, m.count, m.length) for p, m in messages] == [
        ("a", True, 0, 200, 200),
        ("a", False, 200, 1, 0),
    ]
    assert messages[-1][1].step == number


def test_hops_that_were_refilled_keep_all_and_refill_others():
    session = streaming(cached=(128, 128, 128), prefix=PREFIX)
    answer(session, "c", session.step(72, Want.LAST, bytes(4 * 72), 0.0, 200)[0])
    session.on_closed("b", "gone")
    session.on_route(Route((HOPS[0], Hop("d", 2, 4)), 1.0), 0.0)
    for peer_id in "adc":
        opened(session, peer_id)
    assert only(session.on_closed("d", "gone"), Plan) == Plan(2, 4, frozenset("abcd"), "a", "c")


def test_setting_the_position_back_to_0_makes_survivors_keep_all_again():
    session = streaming(cached=(128, 128, 128), prefix=PREFIX)
    session.rewind(0)
    assert session.stats.cached_tokens == 0
    ((_, message),) = sent(session.step(200, Want.LAST, bytes(800), 0.0, 200)[1], Hidden)
    assert message.position == 0
    answer(session, "c", message.step)
    assert only(session.on_closed("b", "gone"), Plan) == Plan(2, 4, frozenset("abc"), "a", "c")


def test_a_whole_new_route_leaves_the_position_where_it_was():
    session = streaming(cached=(128, 128, 128), prefix=PREFIX)
    start_over(session)
    opens = sent(session.on_route(Route(HOPS, 1.0), 0.0), Open)
    assert all(not request.prefix for _, request in opens)
    opened(session, "a")
    opened(session, "b")
    ((peer_id, replay),) = sent(opened(session, "c"), Hidden)
    assert (peer_id, replay.replay, replay.position, replay.count, replay.length) == ("a", True, 0, 128, 200)
    assert session.position == 128


# -- timers ------------------------------------------------------------------------------------------------------------


def test_a_hop_that_does_not_open_is_lost():
    session = make()
    session.on_route(Route(HOPS, 1.0), 5.0)
    opened(session, "a")
    opened(session, "c")
    assert session.deadline() == 15.0
    assert session.on_timer(14.9) == []
    assert isinstance(only(session.on_timer(15.0), Blame).error, HopTimedOut)
    assert session.avoided.peers == {"b"}


def test_survivors_that_were_not_asked_yet_are_not_blamed_for_a_silent_new_hop():
    session = streaming()
    session.on_closed("b", "gone")
    session.on_route(Route((Hop("d", 2, 4),), 1.0), 0.0)
    actions = session.on_timer(10.0)
    assert only(actions, Blame).error.peer_id == "d"
    assert [peer_id for peer_id, _ in sent(actions, Close)] == ["d"]
    assert session.route() == (HOPS[0], HOPS[2])


def test_a_survivor_that_does_not_confirm_is_blamed_and_not_the_new_hop():
    session = streaming()
    step(session)
    session.on_closed("b", "gone")
    session.on_route(Route((Hop("d", 2, 4),), 1.0), 0.0)
    opened(session, "d")
    opened(session, "a")
    assert only(session.on_timer(10.0), Blame).error.peer_id == "c"


@pytest.mark.parametrize(("heard", "blamed"), [("", "a"), ("a", "b"), ("ab", "c"), ("abc", "c")])
def test_the_first_hop_that_owes_a_step_is_lost_and_else_the_last(heard, blamed):
    session = streaming()
    number, _ = step(session, now=1.0)
    for peer_id in heard:
        receipt(session, peer_id, number, now=2.0)
    due = session.deadline()
    assert due == (122.0 if heard else 121.0)
    actions = session.on_timer(due)
    assert only(actions, Blame).error.peer_id == blamed
    assert [peer_id for peer_id, _ in sent(actions, Close)] == [blamed]
    assert session.deadline() is None  # or the shell would spin


def test_nothing_is_due_while_nothing_is_in_flight():
    session = streaming()
    assert session.deadline() is None
    number, _ = step(session, now=3.0)
    assert session.deadline() == 123.0
    answer(session, "c", number, now=4.0)
    assert session.deadline() is None
    assert session.on_timer(1e6) == []


# -- the end -----------------------------------------------------------------------------------------------------------


def test_closing_frees_every_hop_and_is_final():
    session = streaming()
    number, _ = step(session)
    assert [peer_id for peer_id, _ in sent(session.close(), Close)] == ["a", "b", "c"]
    assert session.deadline() is None
    for actions in (
        answer(session, "c", number), opened(session, "a"), refused(session, "b", Reason.FAULT),
        session.on_closed("a", "gone"), session.on_timer(1e6), session.on_route(Route(HOPS, 1.0), 0.0),
    ):  # fmt: skip
        assert actions == []
    assert session.state is State.CLOSED


@pytest.mark.parametrize("state", ["planning", "streaming"])
def test_a_confirmation_that_was_not_asked_for_changes_nothing(state):
    session = streaming()
    step(session)
    if state == "planning":
        session.on_closed("b", "gone")
    before = session.state
    assert opened(session, "a") == []
    assert session.state is before
