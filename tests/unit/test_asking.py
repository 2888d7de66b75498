"""One look-up's questions: every record comes once, and no node hides what another has."""

from __future__ import annotations

import asyncio

import pytest
from shoal.dht import asking
from shoal.dht.asking import Asking
from shoal.dht.protocol import Found, Told
from shoal.dht.store import digest_of

KEYS = (b"a" * 20, b"b" * 20)


class Nodes:
    """Nodes by name: what each has under each key; some do not answer, some claim more than they give."""

    def __init__(self, **has: dict[bytes, set[bytes]]) -> None:
        self.has, self.claims, self.silent, self.slow_s = has, set(), set(), {}
        self.sent: list[tuple[str, bytes]] = []
        self.calls: list[tuple[str, str]] = []

    async def call_find(self, peer, keys, some=None):
        self.calls.append((peer, "all" if some is None else "some"))
        if not await self._answers(peer):
            return None
        found = []
        for number, key in enumerate(keys):
            records = [raw for raw in self.has[peer].get(key, ()) if some is None or digest_of(raw) in some[number]]
            self.sent += [(peer, raw) for raw in records]
            found.append(Found(records, [f"next to {peer}"]))
        return found

    async def call_digests(self, peer, keys):
        self.calls.append((peer, "digests"))
        if not await self._answers(peer):
            return None
        claimed = set(map(digest_of, self.claims)) if peer == "liar" else set()
        return [
            Told(frozenset(claimed | set(map(digest_of, self.has[peer].get(key, ())))), [f"next to {peer}"])
            for key in keys
        ]

    async def _answers(self, peer) -> bool:
        await asyncio.sleep(self.slow_s.get(peer, 0.001))
        return peer not in self.silent


async def look(nodes: Nodes, *order: str, held=()) -> set[bytes]:
    """All nodes asked about all keys, at once."""
    one = Asking(nodes, KEYS, held)
    try:
        found = await asyncio.gather(*(one.ask(peer, key) for peer in order for key in KEYS))
    finally:
        await one.close()
    assert all(each is None or each.peers for each in found)
    return {raw for each in found if each for raw in each.records}


async def test_what_the_first_gave_no_other_sends():
    common = {KEYS[0]: {b"1", b"2"}, KEYS[1]: {b"3"}}
    nodes = Nodes(one=common, two=common, three={**common, KEYS[1]: {b"3", b"4"}})
    assert await look(nodes, "one", "two", "three") == {b"1", b"2", b"3", b"4"}
    assert sorted(nodes.sent) == [("one", b"1"), ("one", b"2"), ("one", b"3"), ("three", b"4")]
    assert nodes.calls.count(("two", "digests")) == 1
    assert ("two", "some") not in nodes.calls


async def test_what_is_held_nobody_sends():
    nodes = Nodes(one={KEYS[0]: {b"1", b"2"}}, two={KEYS[0]: {b"1"}})
    assert await look(nodes, "one", "two", held=[b"1"]) == {b"2"}
    assert nodes.sent == [("one", b"2")]


@pytest.mark.parametrize("order", [("liar", "honest"), ("honest", "liar")])
@pytest.mark.parametrize("held", [(), (b"0",)])
async def test_claims_hide_nothing(order, held):
    """It says that it has all records, is asked first or fastest, and gives none."""
    nodes = Nodes(liar={}, honest={KEYS[0]: {b"1"}, KEYS[1]: {b"2"}})
    nodes.claims, nodes.slow_s = {b"1", b"2", b"3"}, {"honest": 0.02}
    assert await look(nodes, *order, held=held) == {b"1", b"2"}


@pytest.mark.parametrize("silent", [True, False])
async def test_a_first_one_that_does_not_answer_in_time_is_not_waited_for(silent, monkeypatch):
    monkeypatch.setattr(asking, "HEAD_START_S", 0.05)
    nodes = Nodes(first={KEYS[0]: {b"1"}}, second={KEYS[0]: {b"1"}, KEYS[1]: {b"2"}})
    nodes.slow_s = {"first": 0.01 if silent else 60.0}
    nodes.silent = {"first"} if silent else set()
    one = Asking(nodes, KEYS)
    asked = [asyncio.ensure_future(one.ask(peer, KEYS[0])) for peer in ("first", "second")]
    async with asyncio.timeout(2):
        assert (await asked[1]).records == [b"1"]
        assert (await one.ask("second", KEYS[1])).records == [b"2"]
    asked[0].cancel()
    await one.close()
    assert asyncio.all_tasks() <= {asyncio.current_task(), asked[0]}


async def test_what_comes_is_told_as_it_comes_and_the_next_node_is_asked_meanwhile():
    """The first node's keys are slow and quick: what is quick neither waits nor holds others up."""
    nodes = Nodes(one={KEYS[0]: {b"1"}, KEYS[1]: {b"2"}})
    told: list[bytes] = []
    slow = asyncio.Event()
    whole = nodes.call_find

    async def call_find(peer, keys, some=None):
        if keys == [KEYS[1]]:
            await slow.wait()
        return await whole(peer, keys, some)

    nodes.call_find = call_find
    one = Asking(nodes, KEYS, on_found=told.extend)
    late = asyncio.ensure_future(one.ask("one", KEYS[1]))
    async with asyncio.timeout(2):
        assert (await one.ask("one", KEYS[0])).records == [b"1"]
        assert told == [b"1"]
        slow.set()
        assert (await late).records == [b"2"]
    assert told == [b"1", b"2"]
    await one.close()
