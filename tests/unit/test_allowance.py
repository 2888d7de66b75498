"""What one asker can draw from a node of the directory: much less than it can ask for, and more than anybody needs."""

from __future__ import annotations

import asyncio
import random

import pytest
from asked_node import AskedNode
from shoal.dht.allowance import BURST_BYTES, BYTES_S, NAMES_BYTES, SWEEP_EVERY_S, Allowance, Listing
from shoal.dht.drawing import bytes_drawn
from shoal.dht.foreign import PeerID
from shoal.dht.identity import Identity
from shoal.dht.keys import SHARDS, shard_key
from shoal.dht.packing import DIGESTS, cut, some_of
from shoal.dht.protocol import BUCKET_SIZE
from shoal.dht.record import MAX_RECORD_BYTES
from shoal.dht.store import MAX_RECORDS_PER_KEY, digest_of

READER, GREEDY = (PeerID.from_base58(Identity.generate().peer_id) for _ in range(2))
KEYS = [shard_key(b"n" * 32, shard) for shard in range(SHARDS)]
PERIOD_S, REFRESH_S = 15.0, 5.0  # a peer announces, a client looks


class FullStore:
    """Under every key as many of the largest records as there may be."""

    def __init__(self) -> None:
        raws = [number.to_bytes(2, "big") * (MAX_RECORD_BYTES // 2) for number in range(MAX_RECORDS_PER_KEY)]
        self.records = {digest_of(raw): raw for raw in raws}

    def get(self, _key, _now):
        return list(self.records.values())

    def digests(self, _key, _now):
        return list(self.records)

    def some(self, _key, digests, _now):
        return [raw for digest, raw in self.records.items() if digest in digests]


@pytest.fixture
def asked(monkeypatch) -> AskedNode:
    return AskedNode(monkeypatch, FullStore(), bytes_drawn())


async def test_the_largest_swarm_is_read_whole_and_followed(asked):
    """As one look-up does it, and those after it, of 4,096 peers each of which has announced anew every 15 s."""
    digests = list(asked.store.records)
    for key in KEYS:
        assert await asked.given(READER, key) == len(digests)
    for _ in range(60):
        asked.now += REFRESH_S
        told = await asked.find(READER, *(key + DIGESTS for key in KEYS))
        assert [set(cut(result.value)) for result in told] == [set(digests)] * len(KEYS)
        new = frozenset(random.sample(digests, round(len(digests) * REFRESH_S / PERIOD_S)))
        wanted = [some_of(key, new) for key in KEYS]
        given = [await asked.given(READER, *wanted[at : at + 4]) for at in (0, 4)]
        assert given == [4 * len(new)] * 2


async def test_who_announces_as_often_as_can_be_reads_its_shard_each_time(asked):
    for _ in range(60):
        asked.now += 2.0
        assert await asked.given(READER, KEYS[0]) == MAX_RECORDS_PER_KEY


async def test_small_questions_draw_no_more_than_the_allowance(asked):
    began, drawn, names = asked.now, 0, BUCKET_SIZE * 100 * len(KEYS)
    for _ in range(1000):
        asked.now += 0.01
        drawn += await asked.drawn(GREEDY, *KEYS[:3])
    seconds = asked.now - began
    assert BURST_BYTES < drawn < BURST_BYTES + seconds * BYTES_S + names
    more = [await asked.drawn(GREEDY, *KEYS[:3]) for _ in range(NAMES_BYTES // 3000)]
    assert more[-1] == 0, "at this moment it is told nothing any more"
    assert await asked.given(READER, KEYS[0]) == MAX_RECORDS_PER_KEY, "nobody else is worse off"
    asked.now += BURST_BYTES / BYTES_S
    assert await asked.given(GREEDY, KEYS[0]) == MAX_RECORDS_PER_KEY, "nor it, once it has waited"


async def test_who_has_drawn_too_many_records_still_learns_which_nodes_there_are(asked):
    asked.node._drawn.draw(str(GREEDY), "", BURST_BYTES - NAMES_BYTES, asked.now)
    for question in (KEYS[0], KEYS[0] + DIGESTS, some_of(KEYS[0], frozenset(asked.store.records))):
        (result,) = await asked.find(GREEDY, question)
        assert (result.value, len(result.nearest_peer_ids)) == (b"", BUCKET_SIZE)


def test_what_is_paid_for_is_forgotten():
    allowance = Allowance()
    for number in range(1000):
        allowance.draw(f"asker {number}", 4096, number * 0.02)
    assert len(allowance) <= SWEEP_EVERY_S / 0.02 + 1
    allowance.draw("big", BURST_BYTES, 20.0)
    allowance.draw("last", 1, 20.0 + SWEEP_EVERY_S)
    assert len(allowance) == 2
    assert allowance.left("big", 20.0 + SWEEP_EVERY_S) == SWEEP_EVERY_S * BYTES_S


async def test_a_host_that_ends_leaves_no_question_behind() -> None:
    async def forever() -> tuple[object, ...]:
        await asyncio.Event().wait()
        return ()

    listing, before = Listing(forever), asyncio.all_tasks()
    waiting = [asyncio.create_task(listing()) for _ in range(2)]
    await asyncio.sleep(0.01)
    waiting += [asyncio.create_task(listing()) for _ in range(2)]  # share the next one
    await asyncio.sleep(0.01)
    listing.close()
    heard = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in heard] == [ConnectionResetError] * 4
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    with pytest.raises(ConnectionResetError):
        await listing()
