"""Whatever is queued arrives whole and in each session's order, and no session waits for another's large messages."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.peer.errors import RemoteProtocolError
from shoal.peer.link import Link
from shoal.peer.parts import Parts
from shoal.peer.turns import Turns
from shoal.peer.wire import (
    MAX_PARTED,
    MAX_PAYLOAD_BYTES,
    VERSION,
    Close,
    Hello,
    Hidden,
    Opened,
    Part,
    Receipt,
    Want,
    encode,
)  # fmt: skip

PART = 64


def name(session):
    return bytes([session]) * 16


def hidden(session, step, width, epoch=0):
    return Hidden(
        session=name(session), epoch=epoch, step=step, position=step, count=1, want=Want.LAST, replay=False, rows=1,
        width=width, dtype="float32", payload=bytes((session + step + i) % 251 for i in range(4 * width)),
    )  # fmt: skip


def receipt(session, step):
    return Receipt(session=name(session), epoch=0, step=step, queue_s=0.0, compute_s=0.5)


def link():
    made = Link("me", 0.0)
    made.receive(b"".join(encode(Hello(version=VERSION, agent="other"))), 0.0)
    return made


def flat(buffers):
    return b"".join(bytes(buffer) for buffer in buffers)


MESSAGES = st.tuples(st.integers(0, 4), st.integers(0, 200))


@settings(max_examples=60)
@given(st.lists(st.tuples(MESSAGES, st.integers(0, 3)), max_size=40), st.integers(1, 100))
def test_everything_arrives_whole_and_in_its_sessions_order(queued, part):
    turns, other = Turns(), link()
    given_, got = {}, {}

    def go(pieces):
        while pieces and (piece := turns.next(part)) is not None:
            data = flat(piece.buffers)
            assert len(data) == piece.size
            for message in other.receive(data, 0.0):
                got.setdefault(message.session, []).append(message)
            pieces -= 1

    for step, ((session, width), pieces) in enumerate(queued):
        message = hidden(session, step, width) if width else receipt(session, step)
        given_.setdefault(name(session), []).append(message)
        turns.add(message)
        go(pieces)
    go(-1)
    assert got == given_
    assert not turns
    assert turns.bytes == 0
    assert not turns._parted


def test_a_token_waits_for_one_part_of_the_others():
    turns = Turns()
    for step in range(4):
        turns.add(hidden(1, step, 1000))
        turns.add(hidden(2, step, 1000))
    for _ in range(9):
        turns.next(PART)
    turns.add(hidden(3, 0, 4))
    turns.add(receipt(4, 0))
    soon = [flat(turns.next(PART).buffers) for _ in range(4)]
    assert flat(encode(hidden(3, 0, 4))) in soon
    assert flat(encode(receipt(4, 0))) in soon


def test_large_messages_of_two_sessions_share_the_line_evenly():
    turns, sent = Turns(), {1: 0, 2: 0}
    for session in sent:
        turns.add(hidden(session, 0, 5000))
    tickets = {}
    for _ in range(100):
        data = flat(turns.next(PART).buffers)
        (message,) = [m for m in [decoded(data)] if isinstance(m, Part)]
        tickets.setdefault(message.ticket, 0)
        tickets[message.ticket] += len(message.payload)
    assert len(tickets) == 2
    assert abs(tickets[1] - tickets[2]) <= 2 * PART


def decoded(data):
    from shoal.peer.wire import PREFIX, decode, decode_prefix

    header, _ = decode_prefix(data[: PREFIX.size])
    return decode(data[PREFIX.size : PREFIX.size + header], data[PREFIX.size + header :])


def test_only_small_ones_go_while_there_is_no_room():
    turns = Turns()
    turns.add(hidden(1, 0, 1000))
    assert turns.next(PART, small=True) is None
    turns.add(hidden(2, 0, 4))
    assert flat(turns.next(PART, small=True).buffers) == flat(encode(hidden(2, 0, 4)))
    assert turns.next(PART, small=True) is None
    turns.next(PART)
    assert turns.next(4 * 1000, small=True) is None  # what is begun goes on in parts


def test_no_more_is_begun_than_the_other_side_takes():
    turns, other = Turns(), link()
    for session in range(MAX_PARTED + 5):
        turns.add(hidden(session, 0, 200))
    whole = []
    while (piece := turns.next(PART)) is not None:
        whole += other.receive(flat(piece.buffers), 0.0)
    assert sorted(message.session for message in whole) == [name(session) for session in range(MAX_PARTED + 5)]


def test_the_end_of_a_lease_takes_what_waits_for_it_with_it():
    turns, other = Turns(), link()
    for step in range(3):
        turns.add(hidden(1, step, 1000))
    turns.add(hidden(1, 3, 1000, epoch=5))
    turns.add(hidden(2, 0, 1000))
    begun = turns.next(PART)
    other.receive(flat(begun.buffers), 0.0)
    turns.add(Close(session=name(1), epoch=4))
    got = []
    while (piece := turns.next(PART)) is not None:
        got += other.receive(flat(piece.buffers), 0.0)
    assert [m for m in got if m.session == name(1)] == [hidden(1, 3, 1000, epoch=5), Close(session=name(1), epoch=4)]
    assert hidden(2, 0, 1000) in got
    assert turns.bytes == 0
    assert not turns._parted
    assert not other.parts._begun


def part(ticket=1, left=0, header=b"", payload=b""):
    return Part(ticket=ticket, left=left, header=header, payload=payload)


HEAD = bytes(encode(hidden(1, 0, 25))[0][8:])


@pytest.mark.parametrize(
    "bad",
    [
        [part(payload=b"x")],  # never begun
        [part()],
        [part(header=HEAD, left=50, payload=bytes(50)), part(header=HEAD, left=50, payload=bytes(50))],
        [part(header=HEAD, left=50, payload=bytes(50)), part(left=10, payload=bytes(50))],
        [part(header=HEAD, left=50, payload=bytes(50)), part(left=50)],
        [part(header=HEAD, left=50)],
        [part(header=HEAD, left=MAX_PAYLOAD_BYTES, payload=b"x")],
        [part(header=HEAD, payload=bytes(99))],  # not the declared shape
        [part(header=bytes(encode(Opened(session=name(1), epoch=1))[0][8:]), payload=b"x")],
        [part(ticket=n, header=HEAD, left=50, payload=bytes(50)) for n in range(MAX_PARTED + 1)],
        [part(ticket=n, header=HEAD, left=MAX_PAYLOAD_BYTES - 1, payload=b"x") for n in range(3)],
    ],
)
def test_parts_that_fit_nothing_are_refused(bad):
    parts = Parts()
    for piece in bad[:-1]:
        parts.add(piece)
    with pytest.raises(RemoteProtocolError):
        parts.add(bad[-1])


def test_promises_take_no_memory():
    parts = Parts()
    parts.add(part(header=HEAD, left=MAX_PAYLOAD_BYTES - 1, payload=b"x"))
    assert sum(len(begun.payload) for begun in parts._begun.values()) == 1
