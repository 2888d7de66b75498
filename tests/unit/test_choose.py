"""Joining: what others are about to serve counts, and of two that chose alike one chooses again."""

from __future__ import annotations

import asyncio
import time

import pytest
from shoal.dht.background import background
from shoal.dht.record import Record
from shoal.peer import choose as choosing
from shoal.peer.choose import Seat, choose
from shoal.routing.announcement import decode


class Table:
    """The directory's contract for peers of one process."""

    def __init__(self, records: dict[str, Record], peer_id: str) -> None:
        self.records, self.peer_id = records, peer_id

    async def announce(self, body: bytes, ttl_s: float) -> None:
        await asyncio.sleep(0.01)
        now = time.time()
        self.records[self.peer_id] = Record(b"n" * 32, "m", "r", self.peer_id, int(now * 1e6), now + ttl_s, body)

    async def withdraw(self) -> None:
        self.records.pop(self.peer_id, None)

    async def lookup(self, within_s: float | None = None) -> list[Record]:
        return list(self.records.values())


def seat(peer_id: str, revision: str = "r") -> Seat:
    return Seat(peer_id, (), 6, 3, revision, "none", "float32", "1", "")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(choosing, "SPREAD_S", 0.0)  # both look at the same moment
    monkeypatch.setattr(choosing, "SETTLED_S", 0.05)


@pytest.mark.parametrize("_try", range(5))
async def test_two_that_look_at_the_same_moment_end_on_different_blocks(_try):
    records: dict[str, Record] = {}
    spans = await asyncio.gather(*(choose(Table(records, name), seat(name)) for name in ("a", "b")))
    assert sorted((span.start, span.stop) for span in spans) == [(0, 3), (3, 6)]
    announced = [decode(record, 6) for record in records.values()]
    assert {(peer.start, peer.stop, peer.state) for peer in announced} == {(0, 3, "joining"), (3, 6, "joining")}


async def test_what_is_being_loaded_stays_announced_however_long_it_takes(monkeypatch):
    monkeypatch.setattr(choosing, "LOADING_S", 0.4)
    records: dict[str, Record] = {}
    table = Table(records, "a")
    span = await choose(table, seat("a"))
    async with background(choosing.keep_announced(table, seat("a"), span)):
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            await asyncio.sleep(0.02)
            assert records["a"].expiry > time.time()
    peer = decode(records["a"], 6)
    assert (peer.state, range(peer.start, peer.stop)) == ("joining", span)


async def test_a_record_of_ones_own_earlier_run_does_not_count():
    records: dict[str, Record] = {}
    first = await choose(Table(records, "a"), seat("a"))
    await choose(Table(records, "b"), seat("b"))
    assert await choose(Table(records, "a"), seat("a")) == first
