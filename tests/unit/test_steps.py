"""What a session remembers of its steps, and whom it keeps away from."""

from __future__ import annotations

from shoal.client.avoided import Avoided
from shoal.client.steps import Steps
from shoal.peer.wire import Want


def steps(count: int) -> Steps:
    it = Steps(100)
    for _ in range(count):
        it.add(2, Want.NONE, b"", 0)
    return it


def test_an_answer_out_of_turn_leaves_no_gap_in_what_is_sent_again():
    it = steps(4)
    assert it.answered(2)
    assert [step.number for step in it.in_flight()] == [0, 1, 2, 3]  # a new hop cannot run 3 without 2
    assert (it.first(), it.replay_to()) == (0, 0)
    assert it.get(2) is None  # and yet it is answered once
    assert not it.answered(2)


def test_what_is_answered_goes_with_all_before_it():
    it = steps(4)
    assert it.answered(1)
    assert it.answered(0)
    assert [step.number for step in it.in_flight()] == [2, 3]
    assert it.replay_to() == 4
    assert it.answered(3)
    assert it.answered(2)
    assert len(it) == 0
    it.rewind(0)


def test_each_peer_that_failed_gets_one_more_chance_until_an_answer():
    avoided = Avoided()
    assert not avoided.chances
    avoided.failed("a")
    assert avoided.chances
    avoided.forgive()
    assert not avoided.peers
    avoided.failed("a")
    assert not avoided.chances
    avoided.failed("b")
    assert avoided.chances
    avoided.forgive()
    avoided.answered()
    avoided.failed("a")
    assert avoided.chances
