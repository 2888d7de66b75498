"""The announcement's wire form: what goes in comes out, what is absurd comes out sane, what is wrong is refused."""

from __future__ import annotations

import dataclasses
import math

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_swarms import ABSURD, peer
from shoal.dht.record import Record
from shoal.routing.announcement import (
    MAX_ADDRS,
    MAX_BODY_BYTES,
    MAX_RATES,
    MAX_RTTS,
    Announcement,
    AnnouncementError,
    decode,
    encode,
)
from shoal.routing.bounds import (
    BLOCK_S,
    MAX_CHUNK,
    MAX_FREE_TOKENS,
    MAX_QUEUE,
    MAX_UPLOAD_BPS,
    MIN_UPLOAD_BPS,
    RTT_S,
    clamp_upload,
)

N_BLOCKS = 24
LABELS = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), max_size=40)
IDS = st.text("123456789ABCDEFGHJKLMNPQRSTUVWXYZ", min_size=1, max_size=60)
ADDRS = st.lists(st.integers(1, 65535).map("/ip4/203.0.113.7/tcp/{}".format), max_size=MAX_ADDRS).map(tuple)
JUNK = st.none() | st.integers(-(2**63), 2**64 - 1)
SANE_COUNTS = st.integers(1, MAX_CHUNK)
SANE_S = st.floats(BLOCK_S.best, BLOCK_S.worst)


@st.composite
def announced(draw, seconds=SANE_S, counts=SANE_COUNTS) -> Announcement:
    start = draw(st.integers(0, N_BLOCKS - 1))
    return peer(
        "me",
        start,
        draw(st.integers(start + 1, N_BLOCKS)),
        draw(seconds),
        prefill_s=draw(seconds),
        state=draw(st.sampled_from(["joining", "online", "draining", "paused"])),
        queue=draw(counts),
        free_tokens=draw(counts),
        max_chunk=draw(counts),
        addrs=draw(ADDRS),
        rtts=tuple(draw(st.dictionaries(IDS, seconds, max_size=20)).items()),
        name=draw(LABELS),
        reach=draw(st.sampled_from(["direct", "relayed", "unknown"])),
        upload_bps=draw(st.sampled_from([0.0, MIN_UPLOAD_BPS, 1e6, MAX_UPLOAD_BPS])),
        rates=tuple(draw(st.dictionaries(IDS, seconds, max_size=9)).items()),
    )


def record(body: bytes) -> Record:
    return Record(b"\0" * 32, "m", "r", "me", 1, 1060.0, body)


def body_of(**changes) -> bytes:
    body = msgpack.unpackb(encode(peer("me", 0, 4)))
    body.update({key: value for key, value in changes.items() if value is not None})
    return msgpack.packb({key: value for key, value in body.items() if changes.get(key, 0) is not None})


@settings(max_examples=80, deadline=None)
@given(announced())
def test_round_trip(announcement):
    body = encode(announcement)
    assert len(body) <= MAX_BODY_BYTES
    read = decode(record(body), N_BLOCKS)
    assert dataclasses.replace(read, rtts=(), rates=()) == dataclasses.replace(announcement, rtts=(), rates=())
    given = dict(announcement.rates)
    assert all(rate == pytest.approx(clamp_upload(given[there]), abs=0.6) for there, rate in read.rates)
    assert len(read.rates) <= MAX_RATES
    said = dict(announcement.rtts)
    nearest = sorted(said.values())[: len(read.rtts)]
    assert [rtt_s for _, rtt_s in read.rtts] == pytest.approx([max(s, RTT_S.best) for s in nearest], abs=1e-6)
    assert all(rtt_s == pytest.approx(max(said[peer_id], RTT_S.best), abs=1e-6) for peer_id, rtt_s in read.rtts)


def test_a_record_of_before_knows_no_reach_and_no_rate():
    body = msgpack.unpackb(encode(peer("me", 0, 4, reach="direct", upload_bps=1e6)))
    del body["re"], body["b"]
    read = decode(record(msgpack.packb(body)), N_BLOCKS)
    assert (read.reach, read.upload_bps) == ("unknown", 0.0)
    later = decode(record(body_of(re="by pigeon")), N_BLOCKS)
    assert later.reach == "unknown"


def test_a_paused_peer_reads_as_leaving_where_the_word_is_not_known():
    body = msgpack.unpackb(encode(peer("me", 0, 4, state="paused")))
    assert decode(record(msgpack.packb(body)), N_BLOCKS).state == "paused"
    assert body["st"] == "draining"
    assert body.pop("pa") is True
    assert decode(record(msgpack.packb(body)), N_BLOCKS).state == "draining"
    assert set(body) == set(msgpack.unpackb(encode(peer("me", 0, 4))))


@pytest.mark.parametrize("claim", ABSURD)
def test_an_absurd_rate_is_unknown_or_within_its_bounds(claim):
    read = decode(record(encode(peer("me", 0, 4, upload_bps=claim))), N_BLOCKS).upload_bps
    assert read == 0.0 or MIN_UPLOAD_BPS <= read <= MAX_UPLOAD_BPS


@pytest.mark.parametrize("wrong", [[], {"a": "b"}, {"a b": 1}, {str(i): 1 for i in range(MAX_RATES + 1)}])
def test_rates_that_are_none_are_refused(wrong):
    with pytest.raises(AnnouncementError, match=r"'br'|number"):
        decode(record(body_of(br=wrong)), N_BLOCKS)


def test_the_slowest_ways_are_told_and_what_is_no_rate_is_not():
    rates = (("absurd", math.nan), ("none", 0.0), *((f"{i:02d}", 1e6 - i) for i in range(20)))
    read = decode(record(encode(peer("me", 0, 4, rates=rates))), N_BLOCKS)
    assert [there for there, _ in read.rates] == [f"{i:02d}" for i in range(19, 19 - MAX_RATES, -1)]
    assert decode(record(body_of(br={"a": -1, "b": 5e3})), N_BLOCKS).rates == (("b", 5e3),)


def test_as_many_round_trips_as_fit_and_the_nearest_of_them():
    rtts = tuple((f"{i:060d}", 1.0 - i / 100) for i in range(30))
    addrs = tuple(f"/dns4/{'x' * 80}/tcp/{i}" for i in range(MAX_ADDRS))
    roomy = decode(record(encode(peer("me", 0, 4, rtts=rtts))), N_BLOCKS)
    tight = decode(record(encode(peer("me", 0, 4, rtts=rtts, addrs=addrs))), N_BLOCKS)
    assert [peer_id for peer_id, _ in roomy.rtts] == [f"{i:060d}" for i in range(29, 29 - MAX_RTTS, -1)]
    assert 0 < len(tight.rtts) < MAX_RTTS
    assert tight.rtts == roomy.rtts[: len(tight.rtts)]


@settings(max_examples=80, deadline=None)
@given(announced(st.sampled_from(ABSURD), st.integers(-(2**70), 2**70)))
def test_absurd_figures_come_out_sane(announcement):
    read = decode(record(encode(announcement)), N_BLOCKS)
    for figure in (read.decode_s, read.prefill_s):
        assert BLOCK_S.best <= figure <= BLOCK_S.worst
    assert all(RTT_S.best <= rtt_s <= RTT_S.worst for _, rtt_s in read.rtts)
    assert 0 <= read.queue <= MAX_QUEUE
    assert 0 <= read.free_tokens <= MAX_FREE_TOKENS
    assert 1 <= read.max_chunk <= MAX_CHUNK


@pytest.mark.parametrize("figure", [0, 0.0, -1, -0.5, math.nan, math.inf, -math.inf])
def test_what_no_measurement_can_be_counts_as_slowest(figure):
    assert decode(record(body_of(d=figure)), N_BLOCKS).decode_s == BLOCK_S.worst


@pytest.mark.parametrize(
    "changes",
    [
        {"s": -1},
        {"s": 4},
        {"s": 5},
        {"e": N_BLOCKS + 1},
        {"e": 2**64 - 1},
        {"s": 0.0},
        {"s": True},
        {"s": None},
        {"st": "gone"},
        {"st": 3},
        {"d": "fast"},
        {"d": None},
        {"d": True},
        {"p": [1.0]},
        {"qu": 1.5},
        {"f": "many"},
        {"n": "x" * 41},
        {"n": "\x1b[31mred"},
        {"v": b"0.1"},
        {"a": "/ip4/1.2.3.4/tcp/1"},
        {"a": ["/x"] * (MAX_ADDRS + 1)},
        {"a": ["ip4"]},
        {"a": ["/" + "x" * 256]},
        {"a": ["/ip4/\n"]},
        {"r": {str(i): 1 for i in range(MAX_RTTS + 1)}},
        {"r": {"": 1}},
        {"r": {"a b": 1}},
        {"r": {"a": "near"}},
        {"r": []},
        {"n": msgpack.ExtType(5, b"x")},
        {"n": msgpack.Timestamp(1)},
    ],
    ids=str,
)
def test_what_is_no_announcement_is_refused(changes):
    with pytest.raises(AnnouncementError):
        decode(record(body_of(**changes)), N_BLOCKS)


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x80", b"\x90", b"\x91" * 1400, b"\xc7", b"\x00" * 2000, b"\x80\x80"])
def test_bytes_that_are_no_map_are_refused(body):
    with pytest.raises(AnnouncementError):
        decode(record(body), N_BLOCKS)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.dictionaries(st.text(max_size=3), JUNK).map(msgpack.packb))
def test_decoding_any_bytes_gives_an_announcement_or_its_error(body):
    with pytest.raises(AnnouncementError):
        decode(record(body), N_BLOCKS)


@pytest.mark.parametrize("at", range(0, 90, 3))
def test_one_flipped_byte_is_read_or_refused(at):
    body = bytearray(encode(peer("me", 0, 4)))
    for bit in range(8):
        flipped = bytes(byte ^ (1 << bit) if i == at % len(body) else byte for i, byte in enumerate(body))
        try:
            read = decode(record(flipped), N_BLOCKS)
        except AnnouncementError:
            continue
        assert 0 <= read.start < read.stop <= N_BLOCKS


def test_fields_of_a_later_version_are_skipped():
    assert decode(record(body_of(zz=[1, 2])), N_BLOCKS) == decode(record(body_of()), N_BLOCKS)


@pytest.mark.parametrize(
    "wrong",
    [{"start": 4}, {"name": "x" * 41}, {"state": "gone"}, {"addrs": ("nowhere",)}, {"dtype": "\n"}],
    ids=str,
)
def test_what_decoding_refuses_is_not_encoded(wrong):
    with pytest.raises(AnnouncementError):
        encode(peer("me", **{"start": 0, "stop": 4, **wrong}))


def test_addresses_that_do_not_fit_are_an_error():
    with pytest.raises(AnnouncementError, match="fewer addresses"):
        encode(peer("me", 0, 4, addrs=("/" + "x" * 250,) * MAX_ADDRS))
