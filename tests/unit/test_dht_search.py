"""Walks through the directory: hostile nodes next to a key hide it from nobody, whoever it is that asks."""

from __future__ import annotations

import asyncio
import random

import pytest
from shoal.dht.foreign import PeerID
from shoal.dht.keys import distance, node_key
from shoal.dht.protocol import Found
from shoal.dht.search import LATE_S, Search

from tests.sim.clock import run

KEY = b"k" * 20
GIVEN_UP_S = 3.0


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


def test_nodes_that_never_answer_hold_a_path_up_for_a_moment_each_and_late_answers_count():
    """A hostile seed names 20 that are silent until the call is given up; one honest node answers after 2 s."""
    rng = random.Random(7)
    hostile, honest, slow = (PeerID(rng.randbytes(38)) for _ in range(3))
    silent = [PeerID(rng.randbytes(38)) for _ in range(20)]
    behind = PeerID(rng.randbytes(38))

    async def ask(peer: PeerID, _key: bytes) -> Found | None:
        if peer in silent:
            await asyncio.sleep(GIVEN_UP_S)
            return None
        await asyncio.sleep(2.0 if peer == slow else 0.05)
        return {
            hostile: Found([], silent), honest: Found([b"1"], [slow]), slow: Found([b"2"], [behind]),
            behind: Found([b"3"], []),
        }[peer]  # fmt: skip

    async def main() -> float:
        await search.run([hostile, honest], PeerID(b"me" * 19))
        return asyncio.get_running_loop().time()

    search = Search(KEY, ask)
    took_s = run(main())
    assert search.records == {b"1", b"2", b"3"}, "whom a late one names is asked too"
    assert took_s < 6 * LATE_S + GIVEN_UP_S + 0.1, "20 silent nodes over 4 paths"
