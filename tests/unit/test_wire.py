"""Messages and their bytes: round trips, limits on both sides, and the payload's own buffer. No sockets."""

from __future__ import annotations

from dataclasses import fields, replace

import msgpack
import pytest
from shoal.peer.errors import LocalProtocolError, Reason, RemoteProtocolError
from shoal.peer.wire import (
    MAX_COUNT,
    MAX_HEADER_BYTES,
    MAX_KEYS,
    MAX_PAYLOAD_BYTES,
    PREFIX,
    Close,
    Hello,
    Hidden,
    Leaving,
    Open,
    Opened,
    Ping,
    Pong,
    Receipt,
    Refused,
    Reroute,
    Want,
    WireError,
    decode,
    decode_prefix,
    encode,
)

S = bytes(range(16))
HIDDEN = Hidden(
    session=S, epoch=3, step=7, position=11, count=3, want=Want.ALL, replay=False, rows=3, width=2, dtype="bfloat16",
    payload=bytes(range(12)),
)  # fmt: skip
OPEN = Open(
    session=S, epoch=1, namespace=b"n" * 32, revision="r1", start=2, stop=5, max_tokens=100, next_step=4,
    dtype="float32", prev="", next="12D3KooX", next_addrs=("/ip4/127.0.0.1/tcp/1", "b"), final=False,
    forward_replay=True, proof=b"p" * 32,
)  # fmt: skip
LONGEST = (S,) * MAX_KEYS
SAMPLES = [
    Hello(version=1, agent="shoal 0.1 é"),
    OPEN,
    replace(OPEN, proof=b"", next="", next_addrs=(), final=True),
    replace(OPEN, priority=1, prefix=(S, b"k" * 16)),
    Opened(session=S, epoch=0),
    Opened(session=S, epoch=0, cached=640),
    *(Refused(session=S, epoch=9, reason=reason, text="why", retry_s=1.5) for reason in Reason),
    HIDDEN,
    *(replace(HIDDEN, want=want, rows=1, payload=b"1234") for want in Want),
    replace(HIDDEN, rows=0, payload=b""),
    replace(HIDDEN, dtype="int8", payload=bytes(range(12))),
    replace(HIDDEN, dtype="int8", width=65, payload=bytes(3 * (65 + 2 * 2))),
    Leaving(session=S, epoch=7),
    Receipt(session=S, epoch=2, step=5, queue_s=0.0, compute_s=0.25),
    Reroute(session=S, epoch=4, prev="a", next="", next_addrs=(), replay_to=17),
    Close(session=S, epoch=(1 << 31) - 1, prefix=LONGEST),
    Ping(nonce=1),
    Pong(nonce=(1 << 63) - 1),
]


def cut(frame: tuple) -> tuple[bytes, bytes]:
    """Header and payload of one encoded frame, as a receiver cuts them."""
    data = b"".join(frame)
    header, payload = decode_prefix(data[: PREFIX.size])
    assert len(data) == PREFIX.size + header + payload
    return data[PREFIX.size : PREFIX.size + header], data[PREFIX.size + header :]


def header(*values) -> bytes:
    return msgpack.packb(list(values))


def opened_with(**changes) -> bytes:
    """An Open's header with foreign values in it."""
    values = {f.name: getattr(OPEN, f.name) for f in fields(OPEN)} | changes
    return header(1, *values.values())


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)
def test_every_message_comes_back_the_same(message):
    back = decode(*cut(encode(message)))
    assert back == message
    assert [type(getattr(back, f.name)) for f in fields(back)] == [type(getattr(message, f.name)) for f in fields(back)]


def test_the_payload_is_the_callers_buffer():
    payload = bytearray(64 * 1024)
    frame = encode(replace(HIDDEN, count=1, rows=1, width=16 * 1024, dtype="float32", payload=payload))
    assert frame[1] is payload
    assert len(frame[0]) < 128


def test_a_received_payload_is_handed_on_uncopied():
    payload = bytearray(12)
    assert decode(cut(encode(HIDDEN))[0], payload).payload is payload


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (HIDDEN, {"session": b"short"}),
        (HIDDEN, {"epoch": -1}),
        (HIDDEN, {"epoch": 1 << 31}),
        (HIDDEN, {"epoch": True}),
        (HIDDEN, {"position": MAX_COUNT}),
        (HIDDEN, {"count": 0, "rows": 0, "payload": b""}),
        (HIDDEN, {"rows": 4, "payload": bytes(16)}),
        (HIDDEN, {"payload": bytes(11)}),
        (HIDDEN, {"payload": b""}),
        (HIDDEN, {"dtype": "float64"}),
        (HIDDEN, {"dtype": "int8", "payload": bytes(6)}),
        (HIDDEN, {"dtype": "int8", "width": 65, "payload": bytes(3 * 67)}),
        (HIDDEN, {"want": 3}),
        (HIDDEN, {"replay": 1}),
        (OPEN, {"stop": 2}),
        (OPEN, {"max_tokens": 0}),
        (OPEN, {"max_tokens": MAX_COUNT + 1}),
        (OPEN, {"proof": b"p"}),
        (OPEN, {"namespace": b"n" * 31}),
        (OPEN, {"revision": "r" * 65}),
        (OPEN, {"next_addrs": ("a",) * 9}),
        (OPEN, {"next_addrs": ("a" * 257,)}),
        (OPEN, {"next_addrs": ["a"]}),
        (OPEN, {"next_addrs": (b"a",)}),
        (OPEN, {"priority": 2}),
        (OPEN, {"priority": -1}),
        (OPEN, {"priority": True}),
        (OPEN, {"prefix": (b"k" * 15,)}),
        (OPEN, {"prefix": (b"k" * 17,)}),
        (OPEN, {"prefix": ("k" * 16,)}),
        (OPEN, {"prefix": [S]}),
        (OPEN, {"prefix": None}),
        (OPEN, {"prefix": (S,) * (MAX_KEYS + 1)}),
        (Opened(session=S, epoch=0), {"cached": -1}),
        (Opened(session=S, epoch=0), {"cached": MAX_COUNT + 1}),
        (Opened(session=S, epoch=0), {"cached": False}),
        (SAMPLES[0], {"agent": "a" * 65}),
        (SAMPLES[0], {"agent": "\ud800"}),
        (Receipt(session=S, epoch=0, step=0, queue_s=0.0, compute_s=0.0), {"queue_s": float("nan")}),
        (Receipt(session=S, epoch=0, step=0, queue_s=0.0, compute_s=0.0), {"compute_s": float("inf")}),
        (Receipt(session=S, epoch=0, step=0, queue_s=0.0, compute_s=0.0), {"queue_s": -0.1}),
        (Receipt(session=S, epoch=0, step=0, queue_s=0.0, compute_s=0.0), {"queue_s": 1}),
        (Ping(nonce=0), {"nonce": 1 << 63}),
    ],
)
def test_what_a_receiver_would_refuse_cannot_be_made(message, changes):
    with pytest.raises(WireError):
        replace(message, **changes)


def test_the_longest_header_fits_a_frame():
    fish = "\U0001f41f"  # four bytes each
    texts = {"revision": fish * 64, "prev": fish * 128, "next": fish * 128, "next_addrs": (fish * 256,) * 8}
    full = replace(OPEN, **texts, prefix=LONGEST)
    assert decode(*cut(encode(full))) == full


def test_a_frame_too_large_for_a_receiver_is_not_encoded():
    width = 1 << 16
    rows = MAX_PAYLOAD_BYTES // (2 * width) + 1
    with pytest.raises(LocalProtocolError):
        encode(replace(HIDDEN, count=rows, rows=rows, width=width, payload=bytes(rows * width * 2)))


@pytest.mark.parametrize(
    ("header_bytes", "payload_bytes"),
    [(0, 0), (MAX_HEADER_BYTES + 1, 0), (1, MAX_PAYLOAD_BYTES + 1), (0xFFFFFFFF, 0xFFFFFFFF)],
)
def test_frame_sizes_are_bounded(header_bytes, payload_bytes):
    with pytest.raises(RemoteProtocolError):
        decode_prefix(PREFIX.pack(header_bytes, payload_bytes))


def test_the_largest_frame_is_taken():
    assert decode_prefix(PREFIX.pack(MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES)) == (MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xc1",
        b"\x91" * (MAX_HEADER_BYTES - 1) + b"\x08",  # nested arrays
        b"\xc7\x00\x05" * 2000,  # empty ext types
        b"\x92\x08\xd4\x05\x00",  # Ping of an ext type
        b"\x92\x08\xc7\x00\x05",  # Ping of an empty ext type
        b"\x92\x08\xd6\xff\x00\x00\x00\x00",  # Ping of a timestamp
        b"\xdd\xff\xff\xff\xff",  # an array of 4 billion
        b"\xdf\xff\xff\xff\xff",  # a map of 4 billion
        b"\x81\x08\x01",  # a map
        b"\x92\x08\x80",  # Ping of an empty map
        b"\x92\x08\xc6\xff\xff\xff\xff",  # 4 GiB announced
        b"\x93\x00\x01\xa1\xff",  # text that is not UTF-8
        header(8, 1) + b"\x00",  # more than one value
        header(),
        header(99, 1),
        header(-1, 1),
        header(True, 1),
        header(8.0, 1),
        header([8], 1),
        header(8),
        header(8, 1, 1),
        header(8, [1]),
        header(8, True),
        header(8, None),
        header(2, "s" * 16, 0),
        header(3, S, 0, "no such reason", "", 0.0),
        header(3, S, 0, ["busy"], "", 0.0),
        header(3, S, 0, "busy", "t" * 513, 0.0),
        header(4, S, 0, 0, 0, 1, 9, False, 0, 1, "float32"),
        header(6, S, 0, "", "", 5, 0),
        header(6, S, 0, "", "", ["a"] * 33, 0),
        header(2, S, 0),  # as version 1 had it
        header(2, S, 0, -64),
        header(2, S, 0, [64]),
        opened_with(prefix=[S[:15]]),
        opened_with(prefix=["k" * 16]),
        opened_with(prefix=[[S]]),
        opened_with(prefix=S),
        opened_with(prefix=7),
        opened_with(prefix=[S] * (MAX_KEYS + 1)),
        opened_with(priority=2),
    ],
)
def test_a_malformed_header_is_the_other_sides_fault(head):
    with pytest.raises(RemoteProtocolError):
        decode(head, b"")


@pytest.mark.parametrize("message", [m for m in SAMPLES if not isinstance(m, Hidden)], ids=lambda m: type(m).__name__)
def test_only_hidden_states_have_a_payload(message):
    with pytest.raises(RemoteProtocolError):
        decode(cut(encode(message))[0], b"x")


def test_a_payload_that_is_not_of_the_declared_shape_is_refused():
    head, payload = cut(encode(HIDDEN))
    for wrong in (b"", payload[:-1], payload + b"x"):
        with pytest.raises(RemoteProtocolError):
            decode(head, wrong)
