"""Signed records: what is sealed opens, and nothing else does."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.dht.errors import RecordError
from shoal.dht.identity import Identity
from shoal.dht.record import MAX_LIFETIME_S, MAX_RECORD_BYTES, Record, open_record, seal

ME, OTHER = Identity.generate(), Identity.generate()
NOW = 1_800_000_000.0
RECORD = Record(b"n" * 32, "demo", "0123abcd", ME.peer_id, 7, NOW + 60, b"body")


@given(
    st.binary(min_size=32, max_size=32),
    st.text(max_size=40),
    st.text(max_size=15),
    st.integers(0, 2**64 - 1),
    st.floats(NOW + 1e-3, NOW + MAX_LIFETIME_S),
    st.binary(max_size=1500),
)
@settings(max_examples=60, deadline=None)
def test_round_trip(namespace, model, revision, sequence, expiry, body):
    record = Record(namespace, model, revision, ME.peer_id, sequence, expiry, body)
    raw = seal(record, ME)
    assert len(raw) <= MAX_RECORD_BYTES
    assert open_record(raw, NOW) == record


@given(st.integers(0, len(seal(RECORD, ME)) * 8 - 1))
@settings(max_examples=200, deadline=None)
def test_any_flipped_bit_is_noticed(bit):
    raw = bytearray(seal(RECORD, ME))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RecordError):
        open_record(bytes(raw), NOW)


@given(st.binary(max_size=2100))
@settings(max_examples=100, deadline=None)
def test_noise_is_refused(raw):
    with pytest.raises(RecordError):
        open_record(raw, NOW)


@given(st.integers(0, len(seal(RECORD, ME)) - 1))
@settings(max_examples=50, deadline=None)
def test_cut_records_are_refused(length):
    with pytest.raises(RecordError):
        open_record(seal(RECORD, ME)[:length], NOW)


@pytest.mark.parametrize("expiry", [NOW, NOW - 1, NOW + MAX_LIFETIME_S + 0.1, 1e300])
def test_lifetime_is_bounded(expiry):
    raw = seal(replace(RECORD, expiry=expiry), ME)
    with pytest.raises(RecordError, match="expire"):
        open_record(raw, NOW)


@pytest.mark.parametrize("expiry", [float("nan"), float("inf"), float("-inf")])
def test_unbounded_expiry_is_neither_sealed_nor_opened(expiry):
    with pytest.raises(RecordError):
        seal(replace(RECORD, expiry=expiry), ME)
    import struct

    raw = bytearray(seal(RECORD, ME))
    raw[76:84] = struct.pack(">d", expiry)
    with pytest.raises(RecordError, match="expire"):
        open_record(bytes(raw), NOW)


def test_only_the_peer_itself_can_seal():
    with pytest.raises(RecordError):
        seal(RECORD, OTHER)


def test_a_stolen_body_does_not_pass_as_anothers():
    mine = seal(RECORD, ME)
    theirs = seal(replace(RECORD, peer_id=OTHER.peer_id), OTHER)
    spliced = mine[:36] + theirs[36:68] + mine[68:]  # their public key in my record
    with pytest.raises(RecordError, match="signature"):
        open_record(spliced, NOW)


def test_oversized_parts_are_refused():
    for record in (
        replace(RECORD, body=b"x" * 2048),
        replace(RECORD, body=b"x" * 70_000),
        replace(RECORD, model="m" * 201),
        replace(RECORD, revision="r" * 65),
        replace(RECORD, sequence=2**64),
        replace(RECORD, sequence=-1),
        replace(RECORD, namespace=b"short"),
    ):
        with pytest.raises(RecordError):
            seal(record, ME)


def test_a_full_announcement_fits():
    raw = seal(replace(RECORD, model="m" * 200, revision="r" * 40, body=b"x" * 1500), ME)
    assert len(raw) <= MAX_RECORD_BYTES
