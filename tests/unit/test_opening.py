"""Records are opened a few at a time: those of peers that are there first, and never so that all else waits."""

from __future__ import annotations

import asyncio
import time

import pytest
from shoal.dht.envelope import Envelope
from shoal.dht.identity import Identity
from shoal.dht.invite import Invite
from shoal.dht.opening import Backlog, Opener
from shoal.dht.record import Record, seal

INVITE = Invite("default", "demo", ())
BODY = Envelope(b"r" * 8, "", "r1", b"words").encode()


def record(identity: Identity, now: float, **other) -> bytes:
    told = {"namespace": INVITE.namespace, "model": "demo", "revision": "", "sequence": 1, "body": BODY} | other
    return seal(Record(peer_id=identity.peer_id, expiry=now + 60, **told), identity)


def test_what_is_not_a_good_record_of_this_swarm_is_none():
    opener, identity, now = Opener(INVITE), Identity.generate(), time.time()
    good = record(identity, now)
    opened = opener.open(good, now)
    assert opened is not None
    assert (opened.record.revision, opened.record.body, opened.raw) == ("r1", b"words", good)
    assert opener.open(record(identity, now, body=b""), now).envelope is None
    damaged = good[:-1] + bytes([good[-1] ^ 1])
    for bad in (
        damaged, good[:-1], b"", record(identity, now, model="other"), record(identity, now, namespace=b"n" * 32),
        record(identity, now, body=b"\xff"),
    ):  # fmt: skip
        assert opener.open(bad, now) is None
    assert opener.open(good, now + 61) is None


async def test_those_of_peers_that_are_there_come_first():
    there, now = Identity.generate(), time.time()
    others = [record(Identity.generate(), now) for _ in range(50)]
    opened: list[bytes] = []

    def slowly(raw: bytes) -> None:
        time.sleep(0.002)
        opened.append(raw)

    backlog = Backlog(slowly, lambda: [there.public_bytes])
    backlog.add(others)
    await asyncio.sleep(0.005)
    backlog.add([record(there, now)])
    await backlog.wait(0.02)
    assert opened.index(record(there, now)) < 10
    assert len([*backlog]) == 51 - len(opened) > 0, "what was not open in time is opened later"
    await backlog.wait()
    assert sorted(opened) == sorted([*others, record(there, now)])
    assert [*backlog] == []


async def test_thousands_of_records_let_others_run():
    opener, now = Opener(INVITE), time.time()
    bad = [bytes([*record(Identity.generate(), now)[:-1], 0]) for _ in range(400)]
    backlog = Backlog(lambda raw: opener.open(raw, now), list)
    turns = 0
    backlog.add(bad)
    while [*backlog]:
        await asyncio.sleep(0)
        turns += 1
    assert turns > 50, "others had as many"


async def test_a_closed_one_opens_no_more():
    opened: list[bytes] = []
    backlog = Backlog(opened.append, list)
    backlog.add([b"x" * 100])
    backlog.close()
    await asyncio.sleep(0.01)
    assert opened == []


async def test_many_records_under_one_key_neither_come_first_nor_stop_all_else():
    """Anybody may claim to be a node that is there, thousands of times."""
    opened: list[bytes] = []

    def slowly(raw: bytes) -> None:
        time.sleep(0.0001)
        opened.append(raw)

    flood = [bytes(36) + b"k" * 32 + number.to_bytes(100, "big") for number in range(2000)]
    others = [bytes(36) + bytes([number]) * 132 for number in range(20)]
    backlog = Backlog(slowly, lambda: [b"k" * 32])
    backlog.add(flood)
    backlog.add(others)
    most = 0
    while not set(others) <= set(opened):
        before = len(opened)
        await asyncio.sleep(0)
        most = max(most, len(opened) - before)
    assert len(opened) < 200, "others' records came between"
    assert most < 50, "whatever else runs has its turn"
    backlog.close()


async def test_whoever_waits_when_it_is_closed_goes_on():
    """The daemon has died, and the look-up begins anew elsewhere."""
    backlog = Backlog(lambda _: time.sleep(0.001), list)
    backlog.add([bytes(36) + number.to_bytes(100, "big") for number in range(500)])
    waiting = asyncio.create_task(backlog.wait())
    await asyncio.sleep(0.005)
    backlog.close()
    async with asyncio.timeout(1):
        await waiting
        await backlog.wait()


async def test_an_error_is_told_once():
    def fail(_: bytes) -> None:
        raise ZeroDivisionError

    backlog = Backlog(fail, list)
    backlog.add([b"x" * 100])
    with pytest.raises(ZeroDivisionError):
        await backlog.wait()
    backlog.add([])
    await backlog.wait(0.01)
