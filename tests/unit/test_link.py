"""One link: greeting, framing, keep-alive and its end. No sockets: bytes go from hand to hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shoal.peer.errors import LocalProtocolError, RemoteProtocolError
from shoal.peer.link import Link, LinkState, Patience
from shoal.peer.toll import AT_ONCE
from shoal.peer.wire import VERSION, Close, Hello, Hidden, Marked, Opened, Ping, Pong, Want, encode

S = b"s" * 16
HELLO = b"".join(encode(Hello(version=VERSION, agent="other")))
OPENED = Opened(session=S, epoch=1)
HIDDEN = Hidden(
    session=S, epoch=0, step=1, position=2, count=2, want=Want.LAST, replay=False, rows=2, width=3, dtype="float32",
    payload=bytes(24),
)  # fmt: skip

LARGE = replace(HIDDEN, width=2048, payload=bytes(16384))


def raw(*messages) -> bytes:
    return b"".join(b"".join(encode(message)) for message in messages)


def said(link: Link) -> bytes:
    """What the link wants to say; it is then said."""
    data = b"".join(link.outbox)
    link.outbox.clear()
    return data


def opened(patience: Patience = Patience()) -> Link:
    link = Link("me", 0.0, patience)
    said(link)
    assert link.receive(HELLO, 0.0) == []
    return link


def test_both_sides_greet_and_then_talk():
    a, b = Link("a/1", 0.0), Link("b/2", 0.0)
    assert a.state is b.state is LinkState.HELLO
    assert a.receive(said(b), 0.0) == []
    assert b.receive(said(a), 0.0) == []
    assert a.state is b.state is LinkState.OPEN
    assert (a.remote_agent, b.remote_agent) == ("b/2", "a/1")
    assert b.receive(b"".join(a.send(HIDDEN)), 0.0) == [HIDDEN]


def test_every_cut_of_a_stream_gives_the_same_messages():
    stream = raw(OPENED, HIDDEN, Close(session=S, epoch=2))
    for cut in range(len(stream) + 1):
        link = opened()
        assert link.receive(stream[:cut], 0.0) + link.receive(stream[cut:], 0.0) == [
            OPENED, HIDDEN, Close(session=S, epoch=2),
        ]  # fmt: skip
    link = opened()
    assert [m for byte in stream for m in link.receive(bytes([byte]), 0.0)] == [
        OPENED,
        HIDDEN,
        Close(session=S, epoch=2),
    ]


def test_a_received_payload_is_memory_of_its_own():
    link, buffer = opened(), bytearray(raw(HIDDEN))
    (message,) = link.receive(buffer, 0.0)
    buffer[:] = b"\xff" * len(buffer)
    link.receive(raw(HIDDEN), 0.0)
    assert bytes(message.payload) == bytes(24)
    assert not memoryview(message.payload).readonly  # a tensor may be laid over it


@pytest.mark.parametrize("first", [OPENED, HIDDEN, Ping(nonce=1), Pong(nonce=1)])
def test_a_link_begins_with_a_greeting(first):
    with pytest.raises(RemoteProtocolError):
        Link("me", 0.0).receive(raw(first), 0.0)


def test_another_version_is_named():
    with pytest.raises(RemoteProtocolError, match=f"{VERSION + 1}.*{VERSION}"):
        Link("me", 0.0).receive(raw(Hello(version=VERSION + 1, agent="new")), 0.0)


def test_a_second_greeting_is_refused():
    with pytest.raises(RemoteProtocolError):
        opened().receive(HELLO, 0.0)


def test_a_ping_is_answered_inside_the_link():
    link = opened()
    assert link.receive(raw(Ping(nonce=77)), 0.0) == []
    assert said(link) == raw(Pong(nonce=77))


def test_a_round_trip_is_timed_by_its_own_pong_only():
    link = opened()
    link.ping(1.0)
    assert said(link) == raw(Ping(nonce=1))
    link.receive(raw(Pong(nonce=99)), 1.5)
    assert link.rtt_s is None
    link.receive(raw(Pong(nonce=1)), 3.0)
    assert link.rtt_s == 2.0
    link.receive(raw(Pong(nonce=1)), 9.0)
    assert link.rtt_s == 2.0


def test_a_quiet_link_is_pinged_and_a_silent_one_is_dead():
    link = opened(Patience(ping_after_s=2.0, dead_after_s=5.0))
    assert link.deadline() == 2.0
    assert link.on_timer(1.9)
    assert said(link) == b""
    assert link.on_timer(2.0)
    assert said(link) == raw(Ping(nonce=1))
    assert link.deadline() == 5.0
    assert link.on_timer(4.9)
    assert said(link) == b""  # one ping at a time
    assert not link.on_timer(5.0)
    assert link.state is LinkState.CLOSED


def test_anything_heard_keeps_a_link_alive_and_a_pong_lets_it_ping_again():
    link = opened(Patience(ping_after_s=2.0, dead_after_s=5.0))
    link.on_timer(2.0)
    said(link)
    link.receive(raw(OPENED), 4.0)
    assert link.on_timer(6.9)
    link.receive(raw(Pong(nonce=1)), 6.9)
    assert link.deadline() == pytest.approx(8.9)
    link.receive(raw(OPENED), 8.0)
    assert link.deadline() == pytest.approx(10.0)
    assert link.on_timer(10.0)
    assert said(link) == raw(Ping(nonce=2))


def test_who_talks_and_never_answers_a_ping_does_not_hear_us():
    link = opened(Patience(ping_after_s=2.0, dead_after_s=5.0))
    link.on_timer(2.0)
    for second in range(3, 7):
        link.receive(raw(OPENED, Ping(nonce=second)), float(second))
        assert link.on_timer(float(second))
    assert link.deadline() == pytest.approx(7.0)
    assert not link.on_timer(7.0)
    assert link.state is LinkState.CLOSED


@pytest.mark.parametrize("why", ["it answers marks", "its answer waits behind much"])
def test_a_late_pong_has_its_reasons(why):
    link = opened(Patience(ping_after_s=2.0, dead_after_s=5.0))
    link.on_timer(2.0)
    mark = link.flow.wrote(1 << 20, 2.0, more=True)
    assert mark is not None
    answer = raw(Marked(number=mark, at_us=0))
    link.receive(answer if why == "it answers marks" else raw(LARGE)[:5000], 6.0)
    assert link.on_timer(10.9)
    link.receive(answer if why == "it answers marks" else raw(LARGE)[5000:5100], 10.9)  # no news; too little
    assert not link.on_timer(11.0)


def test_a_link_that_was_never_greeted_dies_too():
    link = Link("me", 0.0, Patience(ping_after_s=2.0, dead_after_s=5.0))
    assert link.on_timer(2.0)
    assert not link.on_timer(5.0)


def test_nothing_goes_in_or_out_of_a_closed_link():
    link = opened()
    link.close()
    with pytest.raises(LocalProtocolError):
        link.send(OPENED)
    assert link.receive(raw(OPENED, Ping(nonce=1)), 1.0) == []
    assert said(link) == b""


def test_a_closed_link_is_not_opened_by_a_late_greeting():
    link = Link("me", 0.0)
    link.close()
    assert link.receive(HELLO + raw(OPENED), 0.0) == []
    assert link.state is LinkState.CLOSED


def test_a_huge_frame_is_refused_before_it_is_collected():
    with pytest.raises(RemoteProtocolError):
        opened().receive(b"\xff" * 8, 0.0)


def test_a_program_that_was_busy_itself_takes_nobody_for_dead():
    link = opened()
    due = link.deadline()
    assert link.on_timer(due + 100.0, due)
    assert link.outbox  # it asks again instead
    assert not link.on_timer(due + 200.0, due + 200.0)


@pytest.mark.parametrize(
    ("round_trips", "dead_after_s"), [([0.1] * 12, 2.5), ([0.1, 0.13] * 6, 2.5), ([0.1, 0.4] * 6, 5.0)]
)
def test_an_unsteady_line_gets_more_patience(round_trips, dead_after_s):
    link, now = opened(Patience(ping_after_s=0.5, dead_after_s=2.5)), 0.0
    for nonce, round_trip in enumerate(round_trips, start=1):
        link.ping(now)
        link.receive(raw(Pong(nonce=nonce)), now + round_trip)
        now += 1.0
    heard = now - 1.0 + round_trips[-1]
    assert link.dead_after_s == pytest.approx(dead_after_s)
    link.ping(heard)
    assert link.deadline() == pytest.approx(heard + dead_after_s)
    assert link.on_timer(heard + dead_after_s - 0.01)
    assert not link.on_timer(heard + dead_after_s + 0.01)


def test_of_many_frames_some_are_taken_at_a_time() -> None:
    link, data = opened(), raw(*[OPENED] * (2 * AT_ONCE + 5))
    found = [len(link.receive(data, 0.0))]
    while link.unread:
        found.append(len(link.receive(b"", 0.0)))
    assert found == [AT_ONCE, AT_ONCE, 5]
    assert link.receive(raw(OPENED), 0.0) == [OPENED]
