"""Who has many identities and few addresses keeps nobody else's record out of a directory node."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace

import pytest
from shoal.dht import store as module
from shoal.dht.crowds import Crowds
from shoal.dht.drawing import offers_drawn
from shoal.dht.errors import RecordError
from shoal.dht.foreign import P2PContext, PeerID, dht_pb2
from shoal.dht.identity import Identity
from shoal.dht.keys import record_key, shard_of
from shoal.dht.protocol import ShoalDHT
from shoal.dht.record import Record, seal
from shoal.dht.store import RecordStore

NOW = 1_000_000_000.0
SPACE = b"n" * 32
ROOM = 8


def peers_of_one_shard(count: int) -> list[Identity]:
    made: list[Identity] = []
    while len(made) < count:
        identity = Identity.generate()
        if shard_of(identity.peer_id) == 0:
            made.append(identity)
    return made


def sealed(identity: Identity, sequence: int = 1) -> bytes:
    return seal(Record(SPACE, "demo", "", identity.peer_id, sequence, NOW + 60, b"x"), identity)


def put(store: RecordStore, identity: Identity, network: str | None, sequence: int = 1) -> bool:
    key = record_key(SPACE, identity.peer_id)
    try:
        store.put(key, identity.peer_id, sealed(identity, sequence), NOW, by_owner=True, network=network)
    except RecordError:
        return False
    return True


def kept(store: RecordStore, identity: Identity) -> bool:
    return sealed(identity) in store.get(record_key(SPACE, identity.peer_id), NOW)


def test_crowds_beside_their_plain_rule():
    rng, crowds, plain = random.Random(5), Crowds(), []
    for _ in range(5000):
        entry = (rng.choice("abcde"), rng.randrange(12))
        if rng.random() < 0.55 and entry not in plain:
            crowds.add(*entry)
            plain.append(entry)
        else:
            crowds.remove(*entry)
            plain = [other for other in plain if other != entry]
        sizes = Counter(network for network, _ in plain)
        for network in ("a", "e", "z", None):
            found, most = crowds.one_too_many(network), max(sizes.values(), default=0)
            if most <= sizes[network] + 1:
                assert found is None
            else:
                newest = {next(n for of, n in reversed(plain) if of == name) for name in sizes if sizes[name] == most}
                assert found in newest


@pytest.mark.parametrize("limit", ["MAX_RECORDS_PER_KEY", "MAX_RECORDS"])
def test_a_crowd_of_one_network_makes_room_for_others(monkeypatch, limit):
    monkeypatch.setattr(module, limit, ROOM)
    store, identities = RecordStore(), peers_of_one_shard(ROOM + 8)
    neighbour, *crowd = identities[:ROOM]
    assert all(put(store, identity, "11.0.0.0/24") for identity in (neighbour, *crowd))
    others, more = identities[ROOM : ROOM + 4], identities[ROOM + 4 :]
    assert not put(store, more[0], "11.0.0.0/24")  # there is no end of them
    assert all(put(store, identity, f"11.0.{n}.0/24") for n, identity in enumerate(others, 1))
    assert all(kept(store, identity) for identity in others)
    assert [kept(store, identity) for identity in (neighbour, *crowd)] == [True] * 4 + [False] * 4
    assert put(store, neighbour, "", 2)  # where it is is still known
    assert not put(store, more[1], "11.0.0.0/24")
    assert len(store) == ROOM


def test_networks_that_have_as_much_as_others_keep_it(monkeypatch):
    monkeypatch.setattr(module, "MAX_RECORDS_PER_KEY", ROOM)
    store, identities = RecordStore(), peers_of_one_shard(ROOM + 4)
    for number, identity in enumerate(identities[:ROOM]):
        assert put(store, identity, f"11.0.{number // 2}.0/24")
    first, second, third, local = identities[ROOM:]
    assert put(store, first, "11.0.9.0/24")  # one where others have two
    assert not put(store, second, "11.0.9.0/24")
    assert put(store, third, "11.0.10.0/24")
    assert put(store, local, None)  # of our own network: not counted


async def test_a_node_asks_whence_somebody_comes_once_that_matters(monkeypatch):
    """Eighty identities of one address, each by a connection of its own; then somebody comes who is alone."""
    monkeypatch.setattr(module, "MAX_RECORDS_PER_KEY", ROOM)
    identities = peers_of_one_shard(82)
    early, *crowd, late = identities
    addresses = {identity.peer_id: "/ip4/11.6.6.6/tcp/5" for identity in crowd}
    addresses |= {early.peer_id: "/ip4/11.7.7.7/tcp/5", late.peer_id: "/ip4/11.8.8.8/tcp/5"}
    lists = 0

    async def list_peers():
        nonlocal lists
        lists += 1
        return [SimpleNamespace(peer_id=name, addrs=(where,)) for name, where in addresses.items()]

    node = object.__new__(ShoalDHT)
    node.store, node.clock, node._shunned = RecordStore(), SimpleNamespace(now=lambda _steady: NOW), {}
    node._places, node._offered, node.routing_table = {}, offers_drawn(), set()
    node.node_info, node.p2p = dht_pb2.NodeInfo(), SimpleNamespace(list_peers=list_peers)

    async def offer(identity: Identity, sequence: int = 1) -> bool:
        name = identity.peer_id
        request = dht_pb2.StoreRequest(
            keys=[record_key(SPACE, name)], subkeys=[name.encode()], values=[sealed(identity, sequence)]
        )
        own = PeerID.from_base58(name)
        (stored,) = (await node.rpc_store(request, P2PContext("", own, own))).store_ok
        return stored

    assert await offer(early)
    assert not lists
    taken = [await offer(identity) for identity in crowd]
    assert sum(taken) == ROOM - 1
    assert await offer(early, 2)
    assert await offer(late)
    assert kept(node.store, late)
    assert len(node.store) == ROOM
