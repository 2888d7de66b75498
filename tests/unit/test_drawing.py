"""Who has many identities and few addresses takes little of a directory node, and nothing from others."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from asked_node import ME, AskedNode
from shoal.dht.allowance import BURST_BYTES, BYTES_S, NAMES_BYTES
from shoal.dht.drawing import (
    BYTES,
    BYTES_UNSEEN,
    OFFERS,
    OFFERS_EACH,
    OFFERS_UNSEEN,
    Bound,
    Bounds,
    Drawing,
    bytes_drawn,
    offers_drawn,
)
from shoal.dht.foreign import P2PContext, PeerID, dht_pb2
from shoal.dht.identity import Identity
from shoal.dht.keys import SHARDS, network_of, shard_key
from shoal.dht.packing import some_of
from shoal.dht.protocol import MAX_OFFERS, node_id_of
from shoal.dht.record import MAX_RECORD_BYTES
from shoal.dht.store import MAX_RECORDS_PER_KEY, digest_of

if TYPE_CHECKING:
    from collections.abc import Callable

GUEST, NODE, *MANY = (PeerID.from_base58(Identity.generate().peer_id) for _ in range(1002))
KEYS = [shard_key(b"n" * 32, shard) for shard in range(SHARDS)]
SCALE = 16  # a small swarm and bounds to match: what a flood draws takes time
EACH, NETWORK, TOGETHER, LEAN, UNSEEN = (
    Bound(burst // SCALE, per_s / SCALE) for burst, per_s in ((BURST_BYTES, BYTES_S), *BYTES, BYTES_UNSEEN)
)
RECORDS = MAX_RECORDS_PER_KEY // SCALE
ANSWER = 3 * RECORDS * (MAX_RECORD_BYTES + 100)
USUAL_RECORD_BYTES = 600


def small() -> Drawing:
    return Drawing(EACH, Bounds(NETWORK, TOGETHER, LEAN), UNSEEN, NAMES_BYTES // SCALE)


class Shelves:
    """Records under every key. checked: how many were offered and looked at."""

    def __init__(self) -> None:
        self.checked = 0
        self.fill(RECORDS, MAX_RECORD_BYTES)

    def fill(self, count: int, size: int) -> None:
        raws = [number.to_bytes(2, "big") * (size // 2) for number in range(count)]
        self.records = {digest_of(raw): raw for raw in raws}

    def get(self, _key, _now):
        return list(self.records.values())

    def some(self, _key, digests, _now):
        return [self.records[digest] for digest in digests]

    def asks_whence(self, _key, _peer_id):
        return False

    def put(self, *_, **__):
        self.checked += 1


class Asked(AskedNode):
    """whence: the address at which it sees somebody; lists: how often it looked at who is connected."""

    def __init__(self, monkeypatch, whence: Callable[[PeerID], str]) -> None:
        super().__init__(monkeypatch, Shelves(), small())
        self.lists, self.node._offered = 0, offers_drawn()

        async def addresses():
            self.lists += 1
            return {str(peer): f"/ip4/{whence(peer)}/tcp/1" for peer in (GUEST, NODE, *MANY)}

        self.node.addresses = addresses

    async def offer(self, asker: PeerID, count: int) -> bool:
        request = dht_pb2.StoreRequest(keys=KEYS[:count], subkeys=[b"p"] * count, values=[b"raw"] * count)
        return all((await self.node.rpc_store(request, P2PContext("", ME, asker))).store_ok)


def at(*crowds: str) -> Callable[[PeerID], str]:
    """Strangers in turn at these addresses; a guest and a node elsewhere."""
    found = {GUEST: "11.9.9.9", NODE: "11.8.8.8"}
    found |= {peer: crowds[number % len(crowds)] for number, peer in enumerate(MANY)}
    return found.__getitem__


async def flood(asked: Asked, seconds: float) -> int:
    """Bytes that are drawn by 25 questions a second, each by another identity."""
    drawn = 0
    for number in range(round(25 * seconds)):
        asked.now += 0.04
        drawn += await asked.drawn(MANY[number % len(MANY)], *KEYS[:3])
    return drawn


async def test_new_identities_of_one_address_draw_what_their_network_may(monkeypatch):
    asked, seconds = Asked(monkeypatch, at("11.0.0.1", "11.0.0.200")), 60
    drawn = await flood(asked, seconds)
    assert drawn > seconds * NETWORK.per_s
    assert drawn < NETWORK.burst + UNSEEN.burst + seconds * NETWORK.per_s + 2 * ANSWER
    assert await asked.given(GUEST, *KEYS[:1]) == RECORDS
    assert await flood(asked, seconds) < seconds * NETWORK.per_s + 2 * ANSWER


async def test_beside_a_flood_from_many_networks_each_other_one_is_answered(monkeypatch):
    crowds, seconds = 16, 120
    asked = Asked(monkeypatch, at(*(f"11.0.{number}.1" for number in range(crowds))))
    asked.node.routing_table.add(node_id_of(NODE))
    await flood(asked, 60)
    drawn = await flood(asked, seconds)
    assert drawn < seconds * (TOGETHER.per_s + crowds * LEAN.per_s) + crowds * ANSWER
    for asker in (GUEST, NODE):
        assert [await asked.given(asker, key) for key in KEYS] == [RECORDS] * SHARDS
    asked.now += 90
    assert await asked.given(MANY[0], KEYS[0]) == RECORDS, "a flood is soon forgiven"


async def test_a_node_that_is_known_goes_before_strangers_of_its_network(monkeypatch):
    crowds = [f"11.0.{number}.1" for number in range(15)]
    asked = Asked(monkeypatch, at(*crowds, "11.8.8.8"))  # the node's own
    await flood(asked, 60)
    assert await asked.given(NODE, KEYS[0]) < RECORDS
    asked.node.routing_table.add(node_id_of(NODE))
    assert await asked.given(NODE, KEYS[0]) == RECORDS


async def test_64_clients_behind_one_address_are_all_answered(monkeypatch):
    """They read a swarm of 2,048 peers at once, and each then looks every 5 s; peers announce every 15 s."""
    asked = Asked(monkeypatch, at("11.0.0.1"))
    asked.node._drawn = bytes_drawn()
    asked.store.fill(256, USUAL_RECORD_BYTES)
    crowd, digests = MANY[:64], list(asked.store.records)
    for client in crowd:
        assert [await asked.given(client, key) for key in KEYS] == [256] * SHARDS
    for _ in range(12):
        asked.now += 5
        new = frozenset(random.sample(digests, 86))
        for client in crowd:
            assert await asked.given(client, *(some_of(key, new) for key in KEYS)) == 86 * SHARDS


async def test_crowds_of_our_own_network_have_no_bounds_but_each_one_s(monkeypatch):
    asked = Asked(monkeypatch, at("10.0.0.1"))
    assert network_of("/ip4/10.0.0.1/tcp/1") is None
    assert await flood(asked, 30) > 700 * ANSWER


async def test_nobody_is_looked_up_before_that_matters(monkeypatch):
    asked = Asked(monkeypatch, at("11.0.0.1"))
    for number in range(400):
        asked.now += 1.0
        assert await asked.given(MANY[number], KEYS[0]) == RECORDS
    assert asked.lists == 0
    await flood(asked, 40)
    assert asked.lists == 1, "one list tells of all who are connected"


async def test_few_of_a_network_s_records_are_checked(monkeypatch):
    asked, seconds = Asked(monkeypatch, at("11.0.0.1")), 60
    for number in range(100 * seconds):
        asked.now += 0.01
        await asked.offer(MANY[number % len(MANY)], MAX_OFFERS)
    most = OFFERS.network.burst + OFFERS_UNSEEN.burst + seconds * OFFERS.network.per_s + MAX_OFFERS
    assert OFFERS.network.burst < asked.store.checked < most
    assert not await asked.offer(MANY[0], MAX_OFFERS)
    assert await asked.offer(GUEST, MAX_OFFERS)


async def test_one_identity_offers_no_more_than_many_peers_would(monkeypatch):
    asked = Asked(monkeypatch, at("10.0.0.1"))
    for _ in range(6000):
        asked.now += 0.01
        await asked.offer(GUEST, 1)
    assert asked.store.checked <= OFFERS_EACH.burst + 60 * OFFERS_EACH.per_s + 1
