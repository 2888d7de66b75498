"""Walks through the directory: hostile nodes next to a key hide it from nobody, whoever it is that asks."""

from __future__ import annotations

import asyncio
import random

import pytest
from shoal.dht.foreign import PeerID
from shoal.dht.keys import distance, node_key
from shoal.dht.protocol import Found
from shoal.dht.search import Search

KEY = b"k" * 20


def nearness(peer: PeerID) -> int:
    return distance(KEY, node_key(peer.to_bytes()))


@pytest.mark.parametrize("seeds", [1, 2, 20])
def test_five_nodes_that_made_themselves_the_nearest_hide_nothing(seeds):
    """They name each other only. Who has just come knows one honest node, far from the key."""
    rng = random.Random(seeds)
    honest = [PeerID(rng.randbytes(38)) for _ in range(200)]
    order = sorted(honest, key=nearness)
    sybils: list[PeerID] = []
    while len(sybils) < 5:
        peer = PeerID(rng.randbytes(38))
        if nearness(peer) < nearness(order[0]):
            sybils.append(peer)
    near = sorted([*honest, *sybils], key=nearness)[:20]

    async def ask(peer: PeerID, _key: bytes) -> Found | None:
        await asyncio.sleep(0)
        if peer in sybils:
            return Found([], sybils)
        return Found([b"record"] if peer in order[:10] else [], near)

    search = Search(KEY, ask)
    asyncio.run(search.run(order[-seeds:], PeerID(b"me" * 19)))
    assert search.records == {b"record"}
    assert len(set(search.answered)) == len(search.answered), "nobody is asked twice"


def test_seeds_that_do_not_answer_end_the_walk():
    async def ask(_peer: PeerID, _key: bytes) -> Found | None:
        return None

    search = Search(KEY, ask)
    asyncio.run(search.run([PeerID(b"a" * 38)], PeerID(b"me" * 19)))
    assert (search.records, search.answered) == (set(), [])
