"""Joining: what others are about to serve counts, of two that chose alike one chooses again, the rest is distance."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from shoal.dht.background import background
from shoal.dht.record import Record
from shoal.peer import choose as choosing
from shoal.peer.choose import Seat, choose
from shoal.peer.preview import Preview, _preview
from shoal.routing.announcement import decode

from tests.property.routing_swarms import peer, swarm

if TYPE_CHECKING:
    from shoal.routing.view import View


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


async def nobody(_view, _known) -> dict[str, float]:
    return {}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(choosing, "SPREAD_S", 0.0)  # both look at the same moment
    monkeypatch.setattr(choosing, "SETTLED_S", 0.05)


@pytest.mark.parametrize("_try", range(5))
async def test_two_that_look_at_the_same_moment_end_on_different_blocks(_try):
    records: dict[str, Record] = {}
    spans = await asyncio.gather(*(choose(Table(records, name), seat(name), nobody) for name in ("a", "b")))
    assert sorted((span.start, span.stop) for span in spans) == [(0, 3), (3, 6)]
    announced = [decode(record, 6) for record in records.values()]
    assert {(peer.start, peer.stop, peer.state) for peer in announced} == {(0, 3, "joining"), (3, 6, "joining")}


async def test_what_is_being_loaded_stays_announced_however_long_it_takes(monkeypatch):
    monkeypatch.setattr(choosing, "LOADING_S", 0.4)
    records: dict[str, Record] = {}
    table = Table(records, "a")
    span = await choose(table, seat("a"), nobody)
    here = ["/ip4/198.51.100.10/tcp/4001"]
    async with background(choosing.keep_announced(table, lambda: replace(seat("a"), addrs=tuple(here)), span)):
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            await asyncio.sleep(0.02)
            assert records["a"].expiry > time.time()
            here[:] = ["/ip4/198.51.100.77/tcp/4001"]  # the machine is given another address meanwhile
    peer = decode(records["a"], 6)
    assert (peer.state, range(peer.start, peer.stop), list(peer.addrs)) == ("joining", span, here)


async def test_a_record_of_ones_own_earlier_run_does_not_count():
    records: dict[str, Record] = {}
    first = await choose(Table(records, "a"), seat("a"), nobody)
    await choose(Table(records, "b"), seat("b"), nobody)
    assert await choose(Table(records, "a"), seat("a"), nobody) == first


FAR_S = {"a": 0.4, "b": 0.0004, "c": 0.4, "d": 0.0004}


def halves() -> View:
    """Both halves of six blocks are held twice, by peers that are alike but for where they are."""
    spans = {"a": (0, 3), "b": (3, 6), "c": (0, 3), "d": (3, 6)}
    return swarm(6, *(peer(name, *span) for name, span in spans.items()))


@pytest.mark.parametrize("turned", [False, True])
async def test_of_two_spans_that_are_equally_useful_the_nearer_one_is_taken(turned, monkeypatch):
    """Who is near the holders of one half serves the other: a token has a short way between them."""
    rtts_s = {name: FAR_S["b" if name in ("a", "c") else "a"] if turned else FAR_S[name] for name in FAR_S}
    asked = []

    async def survey(view, known):
        asked.append(([peer.peer_id for peer in view.peers], known))
        return rtts_s

    async def look(*_arguments):
        return halves()

    monkeypatch.setattr(choosing, "look_up", look)
    for _ in range(4):
        span = await choose(Table({}, "me"), seat("me"), survey)
        assert (span.start, span.stop) == ((3, 6) if turned else (0, 3))
    assert asked == [(["a", "b", "c", "d"], {})] * 4
    shown = {preview(rtts_s).start for _ in range(4)}
    assert shown == {span.start}


def preview(rtts_s: dict[str, float]) -> Preview:
    config, room = SimpleNamespace(blocks=None), SimpleNamespace(blocks=3, why="fits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "shoal.peer.loading", SimpleNamespace(memory_of=lambda *_: (0, 0)))
        return _preview(config, None, room, halves(), rtts_s)


def test_a_dry_run_says_what_it_measured():
    found = preview({"a": 0.2, "b": 0.04, "c": 0.01})
    assert "the ways to 3 of 4 peers" in found.assumed
    assert found.assumed.endswith("take 20 ms")
    assert preview({}).assumed.endswith(
        "here, as with the other peers; ways to others that nobody has measured take 25 ms"
    )


async def test_who_holds_the_whole_model_measures_nothing():
    async def survey(_view, _known):
        raise AssertionError

    whole = replace(seat("a"), capacity=6)
    assert await choose(Table({}, "a"), whole, survey) == range(6)
