"""The store of records beside its plain rule, and what a put costs in a full one: steps are counted, not seconds."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, replace
from itertools import count, islice
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.dht import store as module
from shoal.dht.errors import RecordError
from shoal.dht.keys import record_key, shard_of
from shoal.dht.record import Record
from shoal.dht.store import SWEEP_EVERY_S, RecordStore

SPACES = (b"a" * 32, b"b" * 32)
PER_KEY, IN_ALL = 3, 7
NAMES = list(islice((f"peer {n}" for n in count() if shard_of(f"peer {n}") < 2), 6))  # of two shards


class Offers:
    """Records by their wire form; nobody signs or verifies them."""

    def __init__(self) -> None:
        self._made: dict[bytes, Record] = {}

    def opened(self, raw: bytes, _now: float) -> Record:
        return self._made[raw]

    def put(self, store: RecordStore, record: Record, now: float, *, by_owner: bool) -> bool:
        raw = repr(record).encode()
        self._made[raw] = record
        try:
            store.put(record_key(record.namespace, record.peer_id), record.peer_id, raw, now, by_owner=by_owner)
        except RecordError:
            return False
        return True


@dataclass
class Entry:
    key: bytes
    record: Record
    by_owner: bool


class PlainRule:
    """What the store promises, by one list of all that is kept, in the order in which peers came."""

    def __init__(self) -> None:
        self.kept: list[Entry] = []
        self._swept_at = float("-inf")

    def put(self, record: Record, now: float, *, by_owner: bool) -> bool:
        if now >= self._swept_at + SWEEP_EVERY_S or len(self.kept) >= IN_ALL:
            self._swept_at = now
            self.kept = [entry for entry in self.kept if entry.record.expiry > now]
        key = record_key(record.namespace, record.peer_id)
        shelf = [entry for entry in self.kept if entry.key == key]
        for entry in shelf:
            if entry.record.peer_id == record.peer_id:
                if entry.record.sequence >= record.sequence and entry.record != record:
                    return False
                entry.record, entry.by_owner = record, entry.by_owner or by_owner
                return True
        crowd = shelf if len(shelf) >= PER_KEY else self.kept if len(self.kept) >= IN_ALL else None
        if crowd is not None:
            brought = [entry for entry in crowd if not entry.by_owner]
            if not by_owner or not brought:
                return False
            self.kept.remove(brought[0])
        self.kept.append(Entry(key, record, by_owner))
        return True

    def under(self, key: bytes, now: float) -> list[bytes]:
        records = [entry.record for entry in self.kept if entry.key == key]
        return [repr(record).encode() for record in records if record.expiry > now]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_it_keeps_what_the_plain_rule_keeps(seed):
    rng, store, plain, offers, now = random.Random(seed), RecordStore(), PlainRule(), Offers(), 100.0
    keys = {record_key(space, name) for space in SPACES for name in NAMES}
    with mock.patch.multiple(module, open_record=offers.opened, MAX_RECORDS_PER_KEY=PER_KEY, MAX_RECORDS=IN_ALL):
        for _ in range(200):
            now += rng.randint(-1, 4)  # a clock that goes backwards now and then
            sequence, expiry = rng.randint(0, 3), now + rng.randint(1, 40)
            record = Record(rng.choice(SPACES), "demo", "", rng.choice(NAMES), sequence, expiry, b"")
            by_owner = rng.random() < 0.5
            assert offers.put(store, record, now, by_owner=by_owner) == plain.put(record, now, by_owner=by_owner)
            assert len(store) == len(plain.kept)
            for key in keys:
                assert store.get(key, now) == plain.under(key, now)


class Expiry(float):
    """Its comparisons are steps that can be counted, also where a heap's are not."""

    def __lt__(self, other):
        return float(self) < float(other)

    def __le__(self, other):
        return float(self) <= float(other)

    def __gt__(self, other):
        return float(self) > float(other)

    def __eq__(self, other):
        return float(self) == float(other)

    __hash__ = float.__hash__


def steps_of(work) -> int:
    """How many of the interpreter's instructions it takes."""
    steps = 0

    def trace(frame, event, _argument):
        nonlocal steps
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        steps += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return steps


def record_of(number: int, sequence: int = 1) -> Record:
    return Record(number.to_bytes(32, "big"), "demo", "", "peer", sequence, Expiry(1000 + number % 17), b"")


def steps_in_a_full_store(room: int, *, of_owners: bool) -> dict[str, int]:
    """Of a dozen puts of each kind, at an hour at which nothing has expired."""
    store, offers = RecordStore(), Offers()
    with mock.patch.multiple(module, open_record=offers.opened, MAX_RECORDS=room):
        for number in range(room):
            assert offers.put(store, record_of(number), 100.0, by_owner=of_owners)

        def put(first: int, sequence: int, *, by_owner: bool, taken: bool) -> None:
            for number in range(first, first + 12):
                assert offers.put(store, record_of(number, sequence), 100.0, by_owner=by_owner) is taken

        return {
            "renewed": steps_of(lambda: put(room - 12, 2, by_owner=of_owners, taken=True)),
            "brought": steps_of(lambda: put(room, 1, by_owner=False, taken=False)),
            "its own": steps_of(lambda: put(room, 1, by_owner=True, taken=not of_owners)),
        }


@pytest.mark.parametrize("of_owners", [False, True])
def test_a_put_into_a_full_store_takes_as_few_steps_where_ten_times_as_many_are_kept(of_owners):
    few, many = (steps_in_a_full_store(room, of_owners=of_owners) for room in (60, 600))
    for kind, steps in many.items():
        assert steps < 1.5 * few[kind], kind


def test_a_peer_that_renews_without_end_takes_no_more_room():
    store, offers = RecordStore(), Offers()
    with mock.patch.object(module, "open_record", offers.opened):
        for sequence in range(1000):
            record = replace(record_of(0), sequence=sequence, expiry=2000.0 - sequence)
            assert offers.put(store, record, 100.0, by_owner=True)
    assert len(store) == 1
    assert len(store._expiries) <= 2
