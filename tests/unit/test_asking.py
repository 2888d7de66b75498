"""One look-up's questions: every record comes once, and no node hides what another has."""

from __future__ import annotations

import asyncio

import pytest
from shoal.dht import asking
from shoal.dht.asking import Asking
from shoal.dht.protocol import Found, Told
from shoal.dht.store import FEW, digest_of

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

    async def call_few(self, peer, keys):
        self.calls.append((peer, "few"))
        if not await self._answers(peer):
            return None
        found = [Found(sorted(self.has[peer].get(key, ()))[:FEW], [f"next to {peer}"]) for key in keys]
        self.sent += [(peer, raw) for each in found for raw in each.records]
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
        found += await one.rest()
    finally:
        await one.close()
    assert all(each is None or each.peers for each in found[: len(order) * len(KEYS)])
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


class Ear:
    """What a listener heard, in order."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def found(self, raws) -> None:
        self.heard += raws

    def answered(self, named) -> None:
        self.heard.append(set(named))


async def test_what_comes_is_told_as_it_comes_and_the_next_node_is_asked_meanwhile():
    """The first node gives a few of many at once; the others, that are slow, hold nobody up."""
    many = [bytes([65 + number]) for number in range(FEW + 2)]
    nodes, told, slow = Nodes(one={KEYS[0]: {*many}, KEYS[1]: {b"2"}}), Ear(), asyncio.Event()
    digests = nodes.call_digests

    async def call_digests(peer, keys):
        await slow.wait()
        return await digests(peer, keys)

    nodes.call_digests = call_digests
    one = Asking(nodes, KEYS, listener=told)
    async with asyncio.timeout(2):
        assert (await one.ask("one", KEYS[0])).records == many[:FEW]
        assert (await one.ask("one", KEYS[1])).records == [b"2"]
        assert told.heard == [*many[:FEW], b"2", {"next to one"}]
        slow.set()
        assert [sorted(found.records) for found in await one.rest()] == [many[FEW:], []]
    assert sorted(told.heard[-3:-1]) == many[FEW:]
    assert told.heard[-1] == {"next to one"}
    await one.close()


async def test_many_long_records_are_asked_for_key_by_key():
    """One answer takes three MiB, however many keys share it."""
    many = {number.to_bytes(2, "big") for number in range(800)}
    nodes = Nodes(one={KEYS[0]: many, KEYS[1]: {b"2"}}, two={KEYS[0]: many, KEYS[1]: {b"2", b"3"}})
    assert await look(nodes, "one", "two") == many | {b"2", b"3"}
    assert len(nodes.sent) == len(many) + 2, "each once"
    kinds = [kind for peer, kind in nodes.calls if peer == "one"]
    assert kinds == ["few", "digests", "some"], "nothing of the other key"
