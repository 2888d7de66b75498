"""Any message round-trips, and any bytes give messages or RemoteProtocolError: nothing else ever comes out."""

from __future__ import annotations

import contextlib
from dataclasses import fields

from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.blocks.formats import FORMS, row_bytes
from shoal.peer.errors import Reason, RemoteProtocolError
from shoal.peer.link import Link
from shoal.peer.wire import (
    MAX_COUNT,
    MAX_HEADER_BYTES,
    PREFIX,
    VERSION,
    Close,
    Hello,
    Hidden,
    Leaving,
    Message,
    Open,
    Opened,
    Ping,
    Pong,
    Receipt,
    Refused,
    Reroute,
    Want,
    decode,
    decode_prefix,
    encode,
)

FEW = settings(max_examples=150, deadline=None)
session = st.binary(min_size=16, max_size=16)
epoch = st.integers(0, (1 << 31) - 1)
nonce = st.integers(0, (1 << 63) - 1)
seconds = st.floats(0.0, 1e6, exclude_max=True)
peer_id = st.text(st.characters(exclude_categories=["Cs"]), max_size=128)
addrs = st.lists(st.text(st.characters(max_codepoint=127), max_size=256), max_size=8).map(tuple)
dtype = st.sampled_from(FORMS)


@st.composite
def hiddens(draw) -> Hidden:
    rows, width, kind = draw(st.integers(0, 6)), draw(st.integers(1, 8)), draw(dtype)
    size = rows * row_bytes(kind, width)
    return Hidden(
        session=draw(session), epoch=draw(epoch), step=draw(epoch), position=draw(st.integers(0, MAX_COUNT - 1)),
        count=draw(st.integers(max(rows, 1), MAX_COUNT - 1)), want=draw(st.sampled_from(Want)),
        replay=draw(st.booleans()), rows=rows, width=width, dtype=kind,
        payload=draw(st.binary(min_size=size, max_size=size)),
    )  # fmt: skip


@st.composite
def opens(draw) -> Open:
    start = draw(st.integers(0, (1 << 16) - 2))
    return Open(
        session=draw(session), epoch=draw(epoch), namespace=draw(st.binary(min_size=32, max_size=32)),
        revision=draw(st.text("0123456789abcdef", max_size=64)), start=start,
        stop=draw(st.integers(start + 1, (1 << 16) - 1)), max_tokens=draw(st.integers(1, MAX_COUNT)),
        next_step=draw(epoch), dtype=draw(dtype), prev=draw(peer_id), next=draw(peer_id), next_addrs=draw(addrs),
        final=draw(st.booleans()), forward_replay=draw(st.booleans()), proof=draw(st.sampled_from([b"", b"p" * 32])),
        priority=draw(st.integers(0, 1)), prefix=tuple(draw(st.lists(session, max_size=4))) * draw(st.integers(1, 512)),
    )  # fmt: skip


MESSAGES = st.one_of(
    st.builds(Hello, version=st.integers(0, (1 << 16) - 1), agent=st.text("abc é/.", max_size=64)),
    opens(),
    st.builds(Opened, session=session, epoch=epoch, cached=st.integers(0, MAX_COUNT)),
    st.builds(
        Refused, session=session, epoch=epoch, reason=st.sampled_from(Reason), text=peer_id, retry_s=seconds
    ),
    hiddens(),
    st.builds(Receipt, session=session, epoch=epoch, step=epoch, queue_s=seconds, compute_s=seconds),
    st.builds(
        Reroute, session=session, epoch=epoch, prev=peer_id, next=peer_id, next_addrs=addrs,
        replay_to=st.integers(0, MAX_COUNT),
    ),
    st.builds(Close, session=session, epoch=epoch, prefix=st.lists(session, max_size=4).map(tuple)),
    st.builds(Leaving, session=session, epoch=epoch),
    st.builds(Ping, nonce=nonce),
    st.builds(Pong, nonce=nonce),
)  # fmt: skip

# What msgpack can say at all, so that the field checks are reached and not only the msgpack parser.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=20)
    | st.binary(max_size=40) | session,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)  # fmt: skip


def frame(message: Message) -> bytes:
    return b"".join(encode(message))


def decode_all(data: bytes) -> list[Message]:
    """What a link that is greeted makes of these bytes."""
    link = Link("fuzz", 0.0)
    link.receive(frame(Hello(version=VERSION, agent="x")), 0.0)
    return link.receive(data, 0.0)


def valid(message: Message) -> bool:
    """It can be made and encoded again: it is within every bound."""
    again = type(message)(**{f.name: getattr(message, f.name) for f in fields(message)})
    return decode_prefix(frame(again)[: PREFIX.size]) is not None


@FEW
@given(MESSAGES)
def test_every_message_round_trips(message):
    data = frame(message)
    head, payload = decode_prefix(data[: PREFIX.size])
    body = data[PREFIX.size :]
    assert len(body) == head + payload
    assert decode(body[:head], body[head:]) == message


@FEW
@given(st.binary(max_size=200), st.binary(max_size=20))
def test_any_header_gives_a_message_or_the_named_error(head, payload):
    with contextlib.suppress(RemoteProtocolError):
        assert valid(decode(head, payload))


@FEW
@given(st.integers(0, 10), st.lists(VALUES, max_size=16), st.binary(max_size=16))
def test_any_fields_give_a_message_or_the_named_error(kind, values, payload):
    import msgpack

    with contextlib.suppress(RemoteProtocolError):
        assert valid(decode(msgpack.packb([kind, *values]), payload))


@FEW
@given(MESSAGES, st.data())
def test_one_foreign_field_gives_a_message_or_the_named_error(message, data):
    import msgpack

    raw = frame(message)
    head, _ = decode_prefix(raw[: PREFIX.size])
    values = msgpack.unpackb(raw[PREFIX.size : PREFIX.size + head])
    values[data.draw(st.integers(0, len(values) - 1))] = data.draw(VALUES)
    packed = msgpack.packb(values)
    if len(packed) <= MAX_HEADER_BYTES:
        with contextlib.suppress(RemoteProtocolError):
            assert valid(decode(packed, raw[PREFIX.size + head :]))


@FEW
@given(st.lists(MESSAGES, min_size=1, max_size=3), st.data())
def test_damaged_frames_give_messages_or_the_named_error(messages, data):
    raw = bytearray(b"".join(frame(message) for message in messages))
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(raw) - 1))
        change = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if change == "flip":
            raw[index] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "cut" and len(raw) > 1:
            del raw[index]
        else:
            raw[index:index] = data.draw(st.binary(min_size=1, max_size=5))
    with contextlib.suppress(RemoteProtocolError):
        assert all(valid(message) for message in decode_all(bytes(raw)))


@FEW
@given(st.lists(MESSAGES.filter(lambda m: not isinstance(m, (Hello, Ping, Pong))), max_size=4), st.data())
def test_frames_cut_anywhere_give_the_same_messages(messages, data):
    raw = frame(Hello(version=VERSION, agent="x")) + b"".join(frame(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    link, got = Link("fuzz", 0.0), []
    for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        got += link.receive(raw[a:b], 0.0)
    assert got == messages
