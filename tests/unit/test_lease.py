"""The lease's table, row by row, and what it keeps: steps, duplicates, gaps, replays, epochs, strangers, limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shoal.peer.errors import Reason
from shoal.peer.holding import Holding
from shoal.peer.kept import ALWAYS_KEPT
from shoal.peer.lease import REPLAY_ROWS, ROWS_EACH, Lease, Run, Send, Terms
from shoal.peer.repeats import AT_ONCE, EVERY_S
from shoal.peer.wire import Hidden, Open, Opened, Receipt, Refused, Reroute, Want

S = b"s" * 16
WIDTH = 2
OPEN = Open(
    session=S, epoch=1, namespace=b"n" * 32, revision="r", start=0, stop=2, max_tokens=600, next_step=0,
    dtype="float32", prev="before", next="after", next_addrs=("/a",), final=False, forward_replay=False, proof=b"",
)  # fmt: skip


def lease(kept_bytes: int = 1 << 20, cached: int = 0, **changes) -> Lease:
    return Lease(replace(OPEN, **changes), Terms("client", Holding(end=cached), WIDTH, kept_bytes))


def payload(position: int, count: int, salt: int = 0) -> bytes:
    return b"".join(bytes([salt, (position + i) >> 8, (position + i) & 255, 0] * WIDTH) for i in range(count))


def hidden(step: int, position: int, count: int = 1, **changes) -> Hidden:
    fields = {"epoch": 1, "want": Want.LAST, "replay": False, "rows": count, "width": WIDTH, "dtype": "float32"}
    fields |= changes
    fields.setdefault("payload", bytes(fields["rows"] * fields["width"] * 4))
    return Hidden(session=S, step=step, position=position, count=count, **fields)


def finish(it: Lease, run: Run, salt: int = 0):
    """The span ran: rows that name their positions."""
    first = run.hidden.position + run.hidden.count - run.keep_rows
    return it.finish(run.hidden, payload(first, run.keep_rows, salt), run.keep_rows, (0.25, 0.5))


def step(it: Lease, number: int, position: int, count: int = 1, salt: int = 0, **changes):
    (run,) = it.accept(hidden(number, position, count, **changes), "before")
    return finish(it, run, salt)


def refused(actions) -> Reason:
    """The only action is a refusal to the owner; its reason."""
    (action,) = actions
    assert isinstance(action, Send)
    assert isinstance(action.message, Refused)
    assert action.to == "client"
    return action.message.reason


def pushed(actions) -> list[tuple[str, Hidden]]:
    return [(a.to, a.message) for a in actions if isinstance(a, Send) and isinstance(a.message, Hidden)]


def test_the_next_step_runs_and_goes_on_with_a_receipt():
    it = lease()
    (run,) = it.accept(hidden(0, 0, 3), "before")
    assert run == Run(hidden(0, 0, 3), keep_rows=3)
    (to, message), (receipt_to, receipt) = ((a.to, a.message) for a in finish(it, run))
    assert (to, message.step, message.position, message.count, message.replay) == ("after", 0, 0, 3, False)
    assert message.payload == payload(0, 3)
    assert (receipt_to, receipt) == (
        "client", Receipt(session=S, epoch=1, step=0, queue_s=0.25, compute_s=0.5),
    )  # fmt: skip


def test_steps_may_queue_before_the_first_has_run():
    it = lease()
    runs = [it.accept(hidden(n, n), "before")[0] for n in range(5)]
    assert [run.hidden.step for run in runs] == list(range(5))
    assert [pushed(finish(it, run))[0][1].step for run in runs] == list(range(5))


def test_after_a_repair_a_duplicate_is_answered_again_and_runs_nothing():
    it = lease()
    first = step(it, 0, 0, 3)
    step(it, 1, 3)
    it.reroute(reroute(2, prev="before", next="after"), 0.0)
    again = it.accept(hidden(0, 0, 3, epoch=2), "before")
    assert not any(isinstance(action, Run) for action in again)
    assert [(to, message.payload) for to, message in pushed(again)] == [(to, m.payload) for to, m in pushed(first)]
    assert [type(a.message) for a in again] == [Hidden, Receipt]


def test_a_duplicate_is_answered_once_an_epoch():
    """A row of it brings all of an output: others' links would be filled, and two hops could send it round for ever."""
    it = lease()
    step(it, 0, 0, 3)
    assert [it.accept(hidden(0, 0), "before") for _ in range(3)] == [[], [], []]
    it.reroute(reroute(2, prev="before", next="after"), 0.0)
    assert len(it.accept(hidden(0, 0, epoch=2), "before")) == 2
    assert it.accept(hidden(0, 0, epoch=2), "client") == []


def test_tokens_that_wait_are_bounded_by_the_leases_own():
    """Each step may begin at 0 again: 64 of them would bring 64 times what was asked for."""
    it = lease()
    count, runs = it.max_tokens, []
    while isinstance((actions := it.accept(hidden(len(runs), 0, count), "before"))[0], Run):
        runs += actions
    assert refused(actions) is Reason.LIMIT
    assert len(runs) == ROWS_EACH
    finish(it, runs[0])
    assert isinstance(it.accept(hidden(len(runs), 0, count), "before")[0], Run), "as soon as there is room"


def test_a_duplicate_of_a_running_step_waits_for_it():
    it = lease()
    (run,) = it.accept(hidden(0, 0), "before")
    assert it.accept(hidden(0, 0), "before") == []
    assert len(pushed(finish(it, run))) == 1


@pytest.mark.parametrize(("number", "position"), [(2, 1), (5, 5), (1, 2)])
def test_a_gap_is_refused_and_changes_nothing(number, position):
    it = lease()
    step(it, 0, 0)
    assert refused(it.accept(hidden(number, position), "before")) is Reason.GAP
    assert len(step(it, 1, 1)) == 2


def test_a_step_before_the_end_rewinds():
    it = lease()
    step(it, 0, 0, 4)
    step(it, 1, 4)
    step(it, 2, 2, 1, salt=9)
    assert it.position == 3
    sends = pushed(it.reroute(reroute(2, replay_to=3), 0.0))
    assert b"".join(message.payload for _, message in sends) == payload(0, 2) + payload(2, 1, 9)
    assert refused(it.accept(hidden(3, 4, epoch=2), "before")) is Reason.GAP


@pytest.mark.parametrize("epoch", [0, 2])
def test_another_epoch_is_ignored(epoch):
    it = lease()
    step(it, 0, 0)
    for number in (0, 1, 2):
        for replay in (False, True):
            assert it.accept(hidden(number, number, epoch=epoch, replay=replay), "before") == []
    assert it.position == 1


def test_a_strangers_states_are_ignored():
    it = lease()
    for sender in ("stranger", "after", ""):
        for replay in (False, True):
            assert it.accept(hidden(0, 0, replay=replay), sender) == []
    assert it.position == 0
    assert it.accept(hidden(0, 0), "client")


def test_the_first_hop_takes_from_the_client_alone():
    it = lease(prev="")
    assert it.accept(hidden(0, 0), "before") == []
    assert it.accept(hidden(0, 0), "client")


@pytest.mark.parametrize(
    "wrong",
    [
        hidden(0, 599, 2),
        hidden(0, 0, 2, rows=1),
        hidden(0, 0, width=3),
        hidden(0, 0, dtype="float16", payload=bytes(4)),
        hidden(0, 600, replay=True),
    ],
)
def test_states_out_of_bounds_are_refused(wrong):
    it = lease()
    assert refused(it.accept(wrong, "before")) is Reason.LIMIT
    assert it.position == 0


def test_the_last_position_is_within_bounds():
    it = lease()
    step(it, 0, 0, 599)
    assert len(step(it, 1, 599)) == 2


# -- replay ------------------------------------------------------------------------------------------------------------


def test_replayed_states_refill_without_an_answer():
    it = lease(next_step=7)
    (run,) = it.accept(hidden(0, 0, 5, replay=True), "before")
    assert run.keep_rows == 5  # its own successor may be lost one day
    assert finish(it, run) == []
    assert it.position == 5
    assert len(step(it, 7, 5)) == 2
    assert pushed(it.reroute(reroute(2, replay_to=6), 0.0))[0][1].payload == payload(0, 6)


def test_replayed_states_are_passed_on_where_the_next_hop_is_new():
    it = lease(forward_replay=True, next_step=3)
    (run,) = it.accept(hidden(0, 0, 5, replay=True), "before")
    ((to, message),) = pushed(finish(it, run))
    assert (to, message.replay, message.position, message.count) == ("after", True, 0, 5)
    assert message.payload == payload(0, 5)


def test_replayed_states_that_are_there_already_are_ignored():
    it = lease()
    step(it, 0, 0, 5)
    assert it.accept(hidden(0, 0, 5, replay=True), "before") == []
    assert it.accept(hidden(0, 3, 1, replay=True), "before") == []


@pytest.mark.parametrize(("position", "count"), [(6, 1), (3, 4)])
def test_a_replay_that_does_not_begin_at_the_end_is_refused(position, count):
    it = lease()
    step(it, 0, 0, 5)
    assert refused(it.accept(hidden(0, position, count, replay=True), "before")) is Reason.GAP


def test_a_step_that_was_only_replayed_cannot_be_answered_again():
    it = lease(next_step=3)
    finish(it, it.accept(hidden(0, 0, 5, replay=True), "before")[0])
    assert refused(it.accept(hidden(2, 4), "before")) is Reason.NO_REPLAY


# -- the last hop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("want", "rows"), [(Want.NONE, 0), (Want.LAST, 1), (Want.ALL, 4)])
def test_the_last_hop_cuts_its_output_to_what_the_client_wants(want, rows):
    it = lease(final=True, next="")
    (run,) = it.accept(hidden(0, 0, 4, want=want), "before")
    assert run.keep_rows == rows
    actions = finish(it, run)
    assert [(to, m.rows, m.payload) for to, m in pushed(actions)] == (
        [("client", rows, payload(4 - rows, rows))] if rows else []
    )
    it.reroute(reroute(2, prev="before"), 0.0)
    again = it.accept(hidden(0, 0, 4, want=want, epoch=2), "before")
    assert [message.payload for _, message in pushed(again)] == [message.payload for _, message in pushed(actions)]
    assert isinstance(again[-1].message, Receipt)


def test_hops_before_the_last_pass_everything_on():
    for want in Want:
        ((_, message),) = pushed(step(lease(), 0, 0, 4, want=want))
        assert (message.rows, message.want) == (4, want)


def test_the_last_hop_keeps_nothing_of_a_replay():
    (run,) = lease(final=True, next="").accept(hidden(0, 0, 4, replay=True), "before")
    assert run.keep_rows == 0


# -- reroute -----------------------------------------------------------------------------------------------------------


def reroute(epoch: int, replay_to: int = 0, prev: str = "before", next: str = "new") -> Reroute:  # noqa: A002
    return Reroute(session=S, epoch=epoch, prev=prev, next=next, next_addrs=("/n",), replay_to=replay_to)


def test_a_reroute_refills_the_new_hop_before_it_confirms():
    it = lease()
    step(it, 0, 0, 300)
    step(it, 1, 300, 299)
    step(it, 2, 599)
    actions = it.reroute(reroute(2, replay_to=600), 0.0)
    assert actions[-1] == Send("client", Opened(session=S, epoch=2))
    sends = pushed(actions)
    assert [(to, m.replay, m.epoch) for to, m in sends] == [("new", True, 2)] * len(sends)
    assert b"".join(m.payload for _, m in sends) == payload(0, 600)
    assert all(m.count <= REPLAY_ROWS for _, m in sends)
    assert it.next_addrs == ("/n",)


def test_a_survivor_behind_the_new_hop_answers_duplicates_to_its_next():
    it = lease()
    first = step(it, 0, 0, 3)
    assert it.reroute(reroute(2, prev="new before", next="after"), 0.0) == [Send("client", Opened(session=S, epoch=2))]
    assert it.accept(hidden(0, 0, 3, epoch=2), "before") == []
    ((to, message),) = pushed(it.accept(hidden(0, 0, 3, epoch=2), "new before"))
    assert (to, message.payload, message.epoch) == ("after", pushed(first)[0][1].payload, 2)


def test_a_step_that_runs_during_a_reroute_goes_to_the_new_hop_when_it_is_asked_for_again():
    it = lease()
    step(it, 0, 0)
    (run,) = it.accept(hidden(1, 1), "before")
    it.reroute(reroute(2, replay_to=1), 0.0)
    assert it.accept(hidden(1, 1, epoch=2), "before") == []
    ((to, message),) = pushed(finish(it, run))
    assert (to, message.epoch, message.step) == ("new", 2, 1)


def test_a_step_that_runs_during_a_reroute_does_not_overtake_those_before_it():
    """Step 0 went out under the old epoch, which the next hop may have left already: it would see a gap."""
    it = lease()
    runs = [run for number in range(2) for run in it.accept(hidden(number, number), "before")]
    finish(it, runs[0])
    it.reroute(reroute(2, replay_to=0), 0.0)
    assert pushed(finish(it, runs[1])) == []
    again = [it.accept(hidden(number, number, epoch=2), "before") for number in range(2)]
    assert [message.step for actions in again for _, message in pushed(actions)] == [0, 1]


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_old_reroute_is_ignored(epoch):
    it = lease()
    assert it.reroute(reroute(epoch), 0.0) == []
    assert (it.epoch, it.next) == (1, "after")


def test_a_reroute_to_the_client_itself():
    it = lease()
    it.reroute(reroute(2, prev="", next=""), 0.0)
    assert (it.prev, it.next) == ("client", "client")


def test_what_was_not_run_cannot_be_replayed():
    it = lease()
    step(it, 0, 0, 2)
    it.accept(hidden(1, 2), "before")
    assert refused(it.reroute(reroute(2, replay_to=3), 0.0)) is Reason.NO_REPLAY


def test_what_the_budget_took_cannot_be_replayed():
    it = lease(kept_bytes=8)
    for number in range(ALWAYS_KEPT + 1):
        step(it, number, number)
    assert refused(it.reroute(reroute(2, replay_to=ALWAYS_KEPT), 0.0)) is Reason.NO_REPLAY
    assert refused(it.accept(hidden(0, 0, epoch=2), "before")) is Reason.NO_REPLAY
    assert pushed(it.accept(hidden(1, 1, epoch=2), "before"))[0][1].payload == payload(1, 1)


def test_more_steps_in_flight_than_can_be_answered_again_are_refused():
    it = lease(max_tokens=1000)
    for number in range(ALWAYS_KEPT):
        assert isinstance(it.accept(hidden(number, number), "before")[0], Run)
    assert refused(it.accept(hidden(ALWAYS_KEPT, ALWAYS_KEPT), "before")) is Reason.LIMIT


# -- how often outputs go out again ------------------------------------------------------------------------------------


def replayed(actions) -> int:
    return sum(message.count for _, message in pushed(actions))


def test_what_came_in_once_is_not_sent_to_others_without_end():
    """A frame of a few bytes brings all that was kept, to whomever the client names."""
    it = lease()
    step(it, 0, 0, 500)
    answers = [it.reroute(reroute(epoch, replay_to=500), 7.0) for epoch in range(2, 202)]
    assert sum(map(replayed, answers)) == AT_ONCE * 500
    assert {refused(answer) for answer in answers[AT_ONCE:]} == {Reason.NO_REPLAY}
    again = it.reroute(reroute(300, replay_to=500), 7.0 + EVERY_S)
    assert replayed(again) == 500, "once more a while later"
    assert refused(it.reroute(reroute(301, replay_to=500), 7.0 + EVERY_S)) is Reason.NO_REPLAY


def test_an_hour_of_faults_every_five_seconds_is_refilled_each_time():
    """After many in a row, some of which needed two tries."""
    it = lease()
    step(it, 0, 0, 500)
    epochs = iter(range(2, 10_000))
    for _ in range(AT_ONCE // 2):
        assert replayed(it.reroute(reroute(next(epochs), replay_to=500), 0.0)) == 500
    for fault in range(1, 721):
        for _ in range(2 if fault % 5 == 0 else 1):
            actions = it.reroute(reroute(next(epochs), replay_to=500), 5.0 * fault)
            assert replayed(actions) == 500


def test_a_pause_saves_nothing_up():
    it = lease()
    step(it, 0, 0, 500)
    answers = [it.reroute(reroute(epoch, replay_to=500), 1e6) for epoch in range(2, 202)]
    assert sum(map(replayed, answers)) == AT_ONCE * 500


def test_a_row_does_not_bring_a_whole_prompt_again_without_end():
    """Under each new epoch a duplicate is answered, and one row of it is enough to ask."""
    it = lease()
    step(it, 0, 0, 500)
    answers = []
    for epoch in range(2, 202):
        it.reroute(reroute(epoch), 0.0)
        answers.append(it.accept(hidden(0, 0, epoch=epoch), "before"))
    assert sum(map(replayed, answers)) == AT_ONCE * 500
    assert {refused(answer) for answer in answers[AT_ONCE:]} == {Reason.NO_REPLAY}


# -- a prompt that was in the KV already -----------------------------------------------------------------------------


def test_a_lease_goes_on_behind_what_was_cached_and_cannot_refill_others():
    it = lease(cached=64)
    assert it.position == 64
    assert len(step(it, 0, 64, 3)) == 2
    assert refused(it.reroute(reroute(2, replay_to=67), 0.0)) is Reason.NO_REPLAY
    assert pushed(it.accept(hidden(0, 64, 3, epoch=2), "before"))  # answering again needs no beginning


def test_where_another_hop_knew_less_the_first_step_comes_before_the_cached_end():
    it = lease(cached=128)
    step(it, 0, 0, 64)
    step(it, 1, 64)
    assert it.position == 65
    assert b"".join(m.payload for _, m in pushed(it.reroute(reroute(2, replay_to=65), 0.0))) == payload(0, 65)


def test_a_gap_behind_what_was_cached_is_refused():
    assert refused(lease(cached=64).accept(hidden(0, 65), "before")) is Reason.GAP


def test_a_refusals_text_fits_the_wire():
    assert refused(lease().refuse(Reason.FAULT, "x" * 2000)) is Reason.FAULT


def test_a_lease_opened_ahead_takes_its_first_step_under_a_later_number():
    it = lease(next_step=3)
    (run,) = it.accept(hidden(0, 0, 4, replay=True), "before")
    finish(it, run)
    assert refused(it.accept(hidden(9, 5), "before")) is Reason.GAP  # its position says that something is missing
    assert len(step(it, 9, 4)) == 2
    assert refused(it.accept(hidden(11, 5), "before")) is Reason.GAP
