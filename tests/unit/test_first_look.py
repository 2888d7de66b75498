"""Who is in a hurry begins with what one node said: a few records of peers that surely are there; the rest follows."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import pytest
from hivemind.p2p.p2p_daemon_bindings.control import ControlClient
from shoal.dht import opening
from shoal.dht.daemon import Waiting
from shoal.dht.foreign import p2pd_pb2
from shoal.dht.identity import Identity
from shoal.dht.keys import record_key, shard_of
from shoal.dht.looking import Looking
from shoal.dht.opening import Backlog
from shoal.dht.packing import DIGESTS, FEW, SOME, is_asked
from shoal.dht.record import Record, seal
from shoal.dht.store import FEW as A_FEW
from shoal.dht.store import RecordStore

NOW = 1_800_000_000.0
SPACE = b"n" * 32


def of_one_shard(count: int) -> list[Identity]:
    """So many identities whose records lie under one key."""
    found: list[Identity] = []
    while len(found) < count:
        identity = Identity.generate()
        if shard_of(identity.peer_id) == 0:
            found.append(identity)
    return found


def test_a_few_are_of_peers_that_are_known_then_of_those_that_came_themselves_then_of_any():
    store, everybody = RecordStore(), of_one_shard(3 * A_FEW)
    key = record_key(SPACE, everybody[0].peer_id)
    raws = {}
    for number, identity in enumerate(everybody):
        record = Record(SPACE, "demo", "", identity.peer_id, 1, NOW + (5 if number == 0 else 60), b"body")
        raws[identity.peer_id] = seal(record, identity)
        store.put(key, identity.peer_id, raws[identity.peer_id], NOW, by_owner=number % 2 == 0)
    names = [*raws]
    known, came = names[:2], names[2:12:2]

    def of(wanted):
        return {raws[name] for name in wanted}

    assert len(came) == 5, "and seven more that came themselves: the choice among equals is by chance"
    first = store.few(key, NOW, frozenset(known))
    assert len(first) == A_FEW
    assert set(first[:2]) == of(known)
    assert set(first[2:]) <= of(names[2::2])
    assert of(known[:1]).isdisjoint(store.few(key, NOW + 10, frozenset(known))), "that one has expired"
    chosen = {raw for _ in range(60) for raw in store.few(key, NOW, frozenset(known))}
    assert chosen == of(known) | of(names[2::2]), "everybody's turn comes"
    assert set(store.few(key, NOW, frozenset(names[1::2]))) <= of(names[1::2])
    assert store.few(b"k" * 20, NOW, frozenset()) == []


@pytest.mark.parametrize("what", [b"", DIGESTS, FEW])
def test_digests_are_told_with_no_other_question_than_for_some(what):
    assert is_asked((b"k" * 20, what, b""))
    assert not is_asked((b"k" * 20, what, b"d" * 8))
    assert is_asked((b"k" * 20, SOME, b"d" * 8))


class Walk:
    """In place of a node's look: what `listener` hears, and when it ends."""

    def __init__(self) -> None:
        self.end = asyncio.Event()
        self.error: Exception | None = None
        self.held: frozenset[bytes] = frozenset()

    async def look(self, *_keys, held, listener):
        self.held = held
        await asyncio.sleep(0.01)
        listener.found([b"1" * 100, b"2" * 100])
        listener.answered({"other"})
        await self.end.wait()
        if self.error is not None:
            raise self.error
        listener.found([b"2" * 100, b"3" * 100])


async def test_a_look_up_may_be_left_after_the_first_answer_and_goes_on():
    opened: list[bytes] = []
    walk, backlog = Walk(), Backlog(opened.append, list)
    looking = Looking(walk, [b"k"], [b"1" * 100], backlog)
    async with asyncio.timeout(2):
        await looking.wait(for_all=False)
        await backlog.wait()
        assert opened == [b"2" * 100], "what was held is not opened again"
        assert walk.held == {b"1" * 100}
        assert looking.named == {"other"}
        assert not looking.over
        walk.end.set()
        await looking.wait(for_all=True)
        await backlog.wait()
    assert looking.over
    assert opened == [b"2" * 100, b"3" * 100]
    await looking.end()


@pytest.mark.parametrize("for_all", [True, False])
async def test_an_error_of_a_look_up_is_told_to_who_waits(for_all):
    walk = Walk()
    walk.error = ValueError("as it happens")
    walk.end.set()
    looking = Looking(walk, [b"k"], [], Backlog(lambda _: None, list))
    await asyncio.sleep(0.05)
    with pytest.raises(ValueError, match="as it happens"):
        await looking.wait(for_all=for_all)
    await looking.end()


async def test_who_waits_for_a_look_up_that_is_ended_goes_on():
    looking = Looking(Walk(), [b"k"], [], Backlog(lambda _: None, list))
    waiting = asyncio.create_task(looking.wait(for_all=True))
    await asyncio.sleep(0.02)
    await looking.end()
    async with asyncio.timeout(1):
        await waiting
    assert looking.over


async def test_what_nobody_waits_for_is_opened_with_pauses(monkeypatch):
    """A session's first token comes meanwhile."""
    monkeypatch.setattr(opening, "PAUSE_S", 0.2)
    backlog = Backlog(lambda _: time.sleep(2 * opening.SLICE_S), list)
    backlog.add([bytes(36) + number.to_bytes(100, "big") for number in range(20)])
    await backlog.wait(0.1, hurried=False)
    assert len([*backlog]) == 19
    async with asyncio.timeout(2):
        await backlog.wait()
    assert not [*backlog]


async def test_an_answer_to_a_call_that_was_given_up_ends_no_later_call():
    """It would end hivemind's reader, which all calls share."""
    client = ControlClient.__new__(ControlClient)
    client._pending_calls, client._handler_tasks = Waiting(), {}
    client._read_task = client._write_task = None
    given_up, later = uuid4(), uuid4()
    client._pending_calls[given_up], client._pending_calls[later] = asyncio.Future(), asyncio.Future()
    client._pending_calls[given_up].cancel()
    reader = asyncio.StreamReader()
    for number in (given_up, later):
        answer = p2pd_pb2.CallUnaryResponse(response=b"well")
        message = p2pd_pb2.PersistentConnectionResponse(callId=number.bytes, callUnaryResponse=answer)
        raw = message.SerializeToString()
        reader.feed_data(bytes([len(raw)]) + raw)
    reader.feed_eof()
    await client._read_from_persistent_conn(reader)
    assert client._pending_calls[later].result() == b"well"
