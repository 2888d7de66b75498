"""Idle leases of who has most of a peer's KV give way to others, in virtual time: no error, no blame, same tokens."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from shoal.client.options import SessionOptions
from shoal.peer.book import LeaseBook
from shoal.peer.channel import Channel
from shoal.peer.door import LOOKS, LOOKS_S
from shoal.peer.giving import IDLE_S
from shoal.peer.link import Patience
from shoal.peer.wire import PREFIX, Hidden, Open, Part, Want, encode, session_name
from shoal.routing.health import Health

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.network import SimTransport
from tests.sim.swarm import INVITE, N_BLOCKS, choose, generate, states, world

PROMPT = [5, 17, 42, 99, 7, 3, 250, 1, 2, 90, 33]
OTHER = [9, 8, 7, 6, 5, 4, 3]
ALL_PAGES = 16
ALL_TOKENS = ALL_PAGES * toy.PAGE_TOKENS
ANNOUNCED_S = 20.0  # within which peers announce once more


@pytest.fixture
def blamed(monkeypatch):
    """Peers whose standing anything has harmed."""
    found: list[str] = []
    monkeypatch.setattr(Health, "failure", lambda _self, peer_id, _now: found.append(peer_id))
    return found


def expected(prompt, count: int) -> list[int]:
    return toy.generate(prompt, N_BLOCKS, count)


class Talk:
    """A session that generates when it is told to. repairs: how often its route was mended."""

    def __init__(self, session, prompt) -> None:
        self._session, self.tokens, self._new = session, list(prompt), list(prompt)
        session.recall_with(lambda a, b: states(self.tokens[a:b]))

    async def opened(self) -> None:
        await self._session.ready(())

    async def go_on(self, count: int) -> list[int]:
        for _ in range(count):
            out = await self._session.step(states(self._new))
            self._new = [choose(out[-1].tolist())]
            self.tokens += self._new
        return self.tokens[-count:]

    @property
    def repairs(self) -> int:
        return self._session.stats.repairs


async def talk(stack: AsyncExitStack, swarm, prompt, tokens: int, wait_s: float = 0.0) -> Talk:
    """Begin one, with KV for so many tokens."""
    options = SessionOptions(max_tokens=tokens, wait_s=wait_s)
    it = Talk(await stack.enter_async_context(swarm.session(options)), prompt)
    await it.opened()
    return it


def opening(name: str, number: int) -> Open:
    """Asks for all of a peer."""
    return Open(
        session=session_name(name, number.to_bytes(8, "big")), epoch=1, namespace=INVITE.namespace, revision="r1",
        start=0, stop=6, max_tokens=ALL_TOKENS, next_step=0, dtype="float32", prev="", next="", next_addrs=(),
        final=True, forward_replay=False, proof=b"",
    )  # fmt: skip


@pytest.mark.parametrize("before", [0, 6], ids=["never used", "used once"])
@pytest.mark.parametrize(
    "pages",
    [
        {"a": (0, 6, ALL_PAGES)},
        {"a": (0, 3, 8 * ALL_PAGES), "b": (3, 6, ALL_PAGES)},
        {"a": (0, 3, ALL_PAGES), "b": (3, 6, 99)},
    ],
    ids=["the only peer", "the last hop", "the first hop"],
)
def test_who_holds_all_of_a_peer_and_does_not_use_it_keeps_nobody_out_and_goes_on_exactly(pages, before, blamed):
    """A step to the last hop comes from the first one, which was not told anything."""

    async def main():
        loop = asyncio.get_running_loop()
        async with world(3, []) as it, AsyncExitStack() as stack:
            for name, (start, stop, count) in pages.items():
                await it.add_peer(name, start, stop, n_pages=count)
            hoarder = await stack.enter_async_context(it.client("hoarder"))
            idle = await talk(stack, hoarder, PROMPT, ALL_TOKENS)
            await idle.go_on(before)
            await asyncio.sleep(IDLE_S + ANNOUNCED_S)
            began, others = loop.time(), []
            async with it.client("other") as other:
                theirs = await generate(other, OTHER, 20, begun=others.append)
            took_s = loop.time() - began
            await asyncio.sleep(ANNOUNCED_S)
            await idle.go_on(24 - before)
            return theirs, took_s, idle.tokens, (others[0].stats.repairs, idle.repairs)

    theirs, took_s, tokens, repairs = run(main())
    assert theirs == expected(OTHER, 20)
    assert took_s < 3.0
    assert tokens == PROMPT + expected(PROMPT, 24)
    assert repairs == (0, 1), "the newcomer was let in at once, the other one began anew once"
    assert blamed == []


def test_many_leases_that_seldom_step_make_room_and_are_all_exact(blamed):
    async def main():
        loop = asyncio.get_running_loop()
        async with world(5, []) as it, AsyncExitStack() as stack:
            peer = await it.add_peer("a", 0, 6, n_pages=ALL_PAGES)
            hoarder, other = [await stack.enter_async_context(it.client(name)) for name in ("hoarder", "other")]
            prompts = [[*PROMPT[:5], number] for number in range(4)]
            seldom = [await talk(stack, hoarder, prompt, ALL_TOKENS // 4) for prompt in prompts]
            took_s, theirs = [], []
            for _ in range(5):
                for one in seldom:
                    await one.go_on(2)
                await asyncio.sleep(IDLE_S + ANNOUNCED_S)
                began = loop.time()
                theirs.append(await generate(other, OTHER, 8))
                took_s.append(loop.time() - began)
                await asyncio.sleep(1.0)
            return prompts, [one.tokens[6:] for one in seldom], theirs, took_s, peer.node.book.opened

    prompts, tokens, theirs, took_s, opened = run(main())
    assert tokens == [expected(prompt, 10) for prompt in prompts]
    assert theirs == [expected(OTHER, 8)] * 5
    assert max(took_s) < 3.0
    assert opened == 4 + 5 + 4, "one at a time gave way, and was opened anew"
    assert blamed == []


def test_many_clients_of_one_network_keep_nobody_out_from_elsewhere(monkeypatch, blamed):
    """Each of them has no more than the newcomer asks for."""
    monkeypatch.setattr(SimTransport, "whence", lambda _self, name: "198.51.100.0/24" if "sybil" in name else None)

    async def main():
        async with world(9, []) as it, AsyncExitStack() as stack:
            await it.add_peer("a", 0, 6, n_pages=ALL_PAGES)
            swarms = [await stack.enter_async_context(it.client(f"sybil {number}")) for number in range(4)]
            many = [await talk(stack, swarm, PROMPT, ALL_TOKENS // 4) for swarm in swarms]
            await asyncio.sleep(IDLE_S + ANNOUNCED_S)
            async with it.client("other") as other:
                theirs = await generate(other, OTHER, 8)
            await asyncio.sleep(ANNOUNCED_S)
            return theirs, [await one.go_on(3) for one in many]

    theirs, tokens = run(main())
    assert theirs == expected(OTHER, 8)
    assert tokens == [expected(PROMPT, 3)] * 4
    assert blamed == []


def test_who_is_refused_all_the_time_does_not_keep_the_peer_at_looking_for_leases_that_give_way(monkeypatch):
    """A thousand times a second; another client is let in meanwhile."""
    looks, usual = [], LeaseBook.giving_way
    monkeypatch.setattr(LeaseBook, "giving_way", lambda *given: looks.append(given[2]) or usual(*given))
    seconds = 3

    async def main():
        loop = asyncio.get_running_loop()
        async with world(9, []) as it, AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            await it.add_peer("a", 0, 6, n_pages=ALL_PAGES)
            hoarder = await stack.enter_async_context(it.client("hoarder"))
            await talk(stack, hoarder, PROMPT, ALL_TOKENS)
            await asyncio.sleep(IDLE_S + ANNOUNCED_S)
            link = Channel(await SimTransport(it.net, "spam").connect("a", ()), "spam", Patience(), loop.time)
            running = tasks.create_task(link.run(lambda _channel, _message: None))
            for number in range(seconds * 1000):
                link.send(opening("spam", number))
                await asyncio.sleep(0.001)
            async with it.client("other") as other:
                theirs = await generate(other, OTHER, 8)
            link.close()
            await running
            return theirs

    assert run(main()) == expected(OTHER, 8)
    assert LOOKS <= looks.count("spam") <= LOOKS + LOOKS_S * (seconds + 1)


@pytest.mark.parametrize("others", [0, ALL_PAGES // 4], ids=["nobody else", "others that fit"])
def test_a_session_that_pauses_for_a_minute_keeps_what_nobody_else_needs(others):
    async def main():
        async with world(7, []) as it, AsyncExitStack() as stack:
            peer = await it.add_peer("a", 0, 6, n_pages=ALL_PAGES)
            one, other = [await stack.enter_async_context(it.client(name)) for name in ("one", "other")]
            pausing = await talk(stack, one, PROMPT, 3 * ALL_TOKENS // 4)
            await pausing.go_on(4)
            for _ in range(3):
                await asyncio.sleep(20.0)
                if others:
                    await generate(other, OTHER, others * toy.PAGE_TOKENS - len(OTHER))
            await pausing.go_on(4)
            return pausing.tokens, pausing.repairs, peer.node.book.opened

    tokens, repairs, opened = run(main())
    assert tokens == PROMPT + expected(PROMPT, 8)
    assert (repairs, opened) == (0, 4 if others else 1)


@pytest.mark.parametrize("comes", [True, False])
def test_a_lease_whose_prompt_still_comes_in_parts_is_not_idle(comes):
    """Over a slow line; and one whose client stopped in the middle of it."""
    size, count = ALL_TOKENS * 4 * toy.WIDTH, 16
    hidden = Hidden(
        session=opening("slow", 0).session, epoch=1, step=0, position=0, count=ALL_TOKENS, want=Want.LAST,
        replay=False, rows=ALL_TOKENS, width=toy.WIDTH, dtype="float32", payload=bytes(size),
    )  # fmt: skip
    header = b"".join(encode(hidden))[PREFIX.size : -size]

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        async with world(3, []) as it, asyncio.TaskGroup() as tasks:
            node = (await it.add_peer("a", 0, 6, n_pages=ALL_PAGES)).node
            link = Channel(await SimTransport(it.net, "slow").connect("a", ()), "slow", Patience(), loop.time)
            running = tasks.create_task(link.run(lambda _channel, _message: None))
            link.send(opening("slow", 0))
            await asyncio.sleep(0.5)
            quiet_s = []
            for number in range(count - 1):
                if comes or not number:
                    left = size - (number + 1) * (size // count)
                    link.send(Part(1, left, b"" if number else header, bytes(size // count)))
                await asyncio.sleep(3.0)
                (lease,) = node.book.leases.values()
                quiet_s.append(lease.quiet_s(loop.time()))
            link.close()
            await running
            return quiet_s

    assert (max(run(main())) < IDLE_S) == comes
