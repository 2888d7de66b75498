"""What a node of the directory does once a minute, and what it keeps of the records that it is offered."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from shoal.dht import node as node_module
from shoal.dht import steady as steady_module
from shoal.dht.drawing import offers_drawn
from shoal.dht.errors import HostError, RecordError
from shoal.dht.foreign import P2PContext, PeerID, dht_pb2
from shoal.dht.identity import Identity
from shoal.dht.keys import record_key
from shoal.dht.node import REFRESH_EVERY, UPKEEP_PERIOD_S, Node
from shoal.dht.protocol import MAX_OFFERS, ShoalDHT
from shoal.dht.record import Record, seal
from shoal.dht.remembered import Remembered

from tests.sim.clock import run

MINUTE_S = UPKEEP_PERIOD_S * REFRESH_EVERY
GUIDE, NEIGHBOUR, ME = (PeerID.from_base58(Identity.generate().peer_id) for _ in range(3))
WHERE = f"/ip4/127.0.0.1/tcp/4001/p2p/{GUIDE}"


class Around:
    """A node's host and protocol: who can be dialled, and who is in the table. Whoever answers a ping is in it."""

    peer_id, client_mode = str(ME), False
    p2p = SimpleNamespace(peer_id=ME)
    node_id = SimpleNamespace(to_bytes=lambda: b"m" * 20)
    store = SimpleNamespace(get=lambda _key, _now: [])

    def __init__(self) -> None:
        self.died, self.there, self.table = asyncio.Event(), {NEIGHBOUR}, [NEIGHBOUR]
        self.pinged: list[PeerID] = []
        self.routing_table = SimpleNamespace(
            peers=lambda: self.table, least_recent=list, get_nearest_neighbors=lambda _key, _count: []
        )

    async def connect(self, peer_id, _maddrs):
        if PeerID.from_base58(peer_id) not in self.there:
            raise OSError("nobody answers")

    async def call_ping(self, peer):
        self.pinged.append(peer)
        if peer in self.there and peer not in self.table:
            self.table.append(peer)
        return peer in self.there

    async def call_store(self, peer, _key, _peer_id, _raw):
        return peer in self.there

    async def addresses(self):
        return {}

    def now(self):
        return 0.0


def test_a_bootstrap_node_that_comes_back_is_met_again_by_those_who_have_others():
    async def main():
        around = Around()
        node = Node(around, around, (WHERE, f"/ip4/127.0.0.1/tcp/4002/p2p/{ME}"), Remembered())
        upkeep = asyncio.create_task(node.upkeep())
        await asyncio.sleep(2 * MINUTE_S)
        away = list(around.table)
        around.there.add(GUIDE)
        await asyncio.sleep(MINUTE_S)
        back, pinged = list(around.table), len(around.pinged)
        await asyncio.sleep(3 * MINUTE_S)
        upkeep.cancel()
        return away, back, around.pinged[pinged:]

    away, back, later = run(main())
    assert away == [NEIGHBOUR]
    assert GUIDE in back
    assert later == [GUIDE] * 3, "and its clock is read once a minute from then on"


def offers_of(count: int) -> list[tuple[bytes, str, bytes]]:
    """Peers' records with their keys."""
    identities = [Identity.generate() for _ in range(count)]
    records = [Record(b"n" * 32, "demo", "", identity.peer_id, 1, 60.0, b"") for identity in identities]
    return [
        (record_key(record.namespace, record.peer_id), record.peer_id, seal(record, identity))
        for record, identity in zip(records, identities, strict=True)
    ]


async def test_a_record_that_our_own_node_refuses_goes_to_the_others():
    def refuse(*_args, **_options):
        raise RecordError("There is no room for more peers under this key.")

    ((key, _, raw),) = offers_of(1)
    around = Around()
    around.store = SimpleNamespace(put=refuse)
    node = Node(around, around, (), Remembered())
    assert await node.store(key, raw, [GUIDE, NEIGHBOUR]) == 1
    for nobody in ([], [GUIDE]):
        with pytest.raises(RecordError, match="no room"):
            await node.store(key, raw, nobody)


class Kept:
    """A store that notes what it is offered, and what else has run by then."""

    def __init__(self) -> None:
        self.by_owner: list[bool] = []
        self.turns, self.turns_by_then = 0, []

    def asks_whence(self, _key, _peer_id) -> bool:
        return False

    def put(self, _key, _peer_id, _raw, _now, *, by_owner, network):
        assert network == ""
        self.by_owner.append(by_owner)
        self.turns_by_then.append(self.turns)

    async def turn(self) -> None:
        while True:
            self.turns += 1
            await asyncio.sleep(0)


def answering(store) -> ShoalDHT:
    """A node's answering side, without a daemon."""
    protocol = object.__new__(ShoalDHT)
    protocol.store, protocol.clock, protocol._shunned = store, SimpleNamespace(now=lambda _steady: 0.0), {}
    protocol.node_info, protocol._places = dht_pb2.NodeInfo(), {}
    protocol._offered, protocol.routing_table = offers_drawn(), set()
    return protocol


def asked_to_store(offers: list[tuple[bytes, str, bytes]]) -> dht_pb2.StoreRequest:
    keys, subkeys, values = zip(*offers, strict=True)
    return dht_pb2.StoreRequest(keys=keys, subkeys=[subkey.encode() for subkey in subkeys], values=values)


async def test_what_a_stranger_brings_is_told_from_what_a_peer_offers_itself():
    store, offers = Kept(), offers_of(2)
    context = P2PContext("", ME, PeerID.from_base58(offers[0][1]))
    answer = await answering(store).rpc_store(asked_to_store(offers), context)
    assert list(answer.store_ok) == [True, True]
    assert store.by_owner == [True, False]


async def test_a_request_has_room_for_few_records_and_others_have_their_turn_between_them():
    store, context = Kept(), P2PContext("", ME, NEIGHBOUR)
    others = asyncio.create_task(store.turn())
    many = await answering(store).rpc_store(asked_to_store(offers_of(MAX_OFFERS + 1)), context)
    assert (list(many.store_ok), store.by_owner) == ([False] * (MAX_OFFERS + 1), [])
    few = await answering(store).rpc_store(asked_to_store(offers_of(MAX_OFFERS)), context)
    others.cancel()
    assert list(few.store_ok) == [True] * MAX_OFFERS
    assert MAX_OFFERS == 4
    assert len(set(store.turns_by_then)) == MAX_OFFERS


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no clock that runs on in suspend")
async def test_swarm_time_runs_on_while_the_machine_sleeps(monkeypatch):
    opened = []

    async def no_daemon(_host, clock, *, guest):
        opened.append(clock)
        raise OSError

    wall, awake_s, slept_s = 1_800_000_000.0, [50.0], [0.0]
    clocks = {time.CLOCK_BOOTTIME: lambda: awake_s[0] + slept_s[0]}
    for module in (node_module, steady_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(
            time=lambda: wall, monotonic=lambda: awake_s[0],
            CLOCK_BOOTTIME=time.CLOCK_BOOTTIME, clock_gettime=lambda which: clocks[which](),
        ))  # fmt: skip
    monkeypatch.setattr(ShoalDHT, "open", no_daemon)
    with pytest.raises(HostError):
        async with node_module.open_node(Around()):
            pytest.fail("no daemon, and yet a node")
    protocol = answering(Kept())
    (protocol.clock,) = opened
    slept_s[0] = 600.0
    awake_s[0] += 5.0
    assert protocol.now() == wall + 605.0


def test_without_a_clock_that_runs_on_in_suspend_the_monotonic_one_serves(monkeypatch):
    monkeypatch.setattr(steady_module, "time", SimpleNamespace(monotonic=lambda: 7.0))
    assert steady_module.steady() == 7.0
