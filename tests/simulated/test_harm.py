"""What one client, hop or chance does to a peer harms no other: KV on its way, full links, a pause told again."""

from __future__ import annotations

import asyncio

import pytest
from shoal.peer.book import LeaseBook, Limits, Offer
from shoal.peer.channel import Channel
from shoal.peer.engine import Output
from shoal.peer.errors import HopClosed, Reason
from shoal.peer.link import Patience
from shoal.peer.node import NodeConfig
from shoal.peer.order import EngineFault
from shoal.peer.pausing import Pausing
from shoal.peer.pool import UNREACHED
from shoal.peer.steps import Steps
from shoal.peer.wire import Close, Hidden, Open, Refused, Want, session_name

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.network import SimTransport
from tests.sim.rogues import carried, leave, mislead, named, stranger, strangers
from tests.sim.swarm import N_BLOCKS, generate, world

KEYS = (b"k" * 16,)
PAGE = 16


class Shelf:
    """An engine that writes down whose rows each page holds, and cannot always bring pages back."""

    max_step_tokens, max_batch, broken = 512, 8, False

    def __init__(self) -> None:
        self.held: dict[int, bytes] = {}
        self.closes = None

    def quick(self, *_) -> bool:
        return False

    async def run(self, batch):
        await asyncio.sleep(0.01)
        for piece in batch:
            for position in range(piece.position, piece.position + piece.count):
                self.held[piece.pages[position // PAGE]] = bytes(piece.payload)[:1]
        return [Output(bytes(4 * piece.keep_rows), finite=True) for piece in batch]

    async def save(self, pages):
        await asyncio.sleep(0.01)
        return [self.held.get(page) for page in pages]

    async def restore(self, saved, pages):
        await asyncio.sleep(0.05)
        if self.closes is not None:
            self.closes()
            await asyncio.sleep(0.01)
            raise EngineFault("out of memory")
        self.held |= dict(zip(pages, saved, strict=True))


class Mute:
    """Sends nothing, and is never clogged."""

    def perform(self, lease, actions, *, at_once=False) -> None:
        pass

    def clogged(self, _lease) -> bool:
        return False


def test_what_did_not_come_back_from_host_memory_is_found_by_nobody():
    """A client closes while its pages are on their way, and naming them: they still hold another's KV."""

    async def main() -> int:
        offer = Offer(bytes(32), "r", 0, 1, 1, 8, PAGE, lambda *_: True)
        book, shelf = LeaseBook(offer, Limits(swap_pages=16)), Shelf()
        config = NodeConfig(offer, "test", clock=asyncio.get_running_loop().time)
        steps = Steps(shelf, book, Mute(), config)
        running = asyncio.create_task(steps.run())

        def opened(client: str, number: int, keys=()):
            request = Open(
                session=session_name(client, bytes([number]) * 8), epoch=1, namespace=bytes(32), revision="r", start=0,
                stop=1, max_tokens=128, next_step=0, dtype="float32", prev="", next="", next_addrs=(), final=True,
                forward_replay=False, proof=b"", prefix=keys,
            )  # fmt: skip
            return book.open(request, client)

        async def push(lease, step: int, position: int, count: int) -> None:
            payload = lease.owner.encode()[:1] * 4 * count
            hidden = Hidden(
                session=lease.session, epoch=1, step=step, position=position, count=count, want=Want.LAST,
                replay=False, rows=count, width=1, dtype="float32", payload=payload,
            )  # fmt: skip
            for action in lease.accept(hidden, lease.owner):
                steps.add(lease, action)
            steps.go()
            await asyncio.sleep(1)

        alice = opened("alice", 1)
        await push(alice, 0, 0, 64)
        await push(opened("bob", 1), 0, 0, 120)
        assert alice.holding.saved, "she had to make room"

        def close() -> None:
            if not steps.moving(alice):
                book.residency.name(alice.holding, KEYS)
            steps.end(alice)

        shelf.closes = close
        await push(alice, 1, 64, 1)
        again = opened("alice", 2, KEYS)
        running.cancel()
        return again.position

    assert run(main()) == 0


def test_a_close_names_nothing_that_is_on_its_way(monkeypatch):
    async def main() -> list[object]:
        async with world(3, [(0, 6)]) as it, it.client() as swarm:
            node, named = it.peers["p0"].node, []
            monkeypatch.setattr(node.book.residency, "name", lambda *given: named.append(given))

            async def each(number, session) -> None:
                if number == 3:
                    (lease,) = node.book.leases.values()
                    node.steps._moving = {lease.holding}
                    message = Close(session=lease.session, epoch=lease.epoch, prefix=KEYS)
                    node._on_close(next(c for c in node._links.values() if c.remote == "client"), message)

            await generate(swarm, [1, 2, 3], 6, wait_s=5.0, each=each)
            return [given for given in named if given[1] == KEYS]

    assert run(main()) == []


def test_a_link_that_brings_states_is_not_idle():
    """Visitors fill all links there may be: that of the hop before stays, whoever opened it."""

    async def main() -> tuple[list[int], int]:
        loop = asyncio.get_running_loop()
        async with world(3, [(0, 3), (3, 6)]) as it, it.client() as swarm:
            visitors: list[Channel] = []

            async def visit() -> None:
                await asyncio.sleep(1)
                for number in range(33):
                    for _ in range(16):
                        stream = await SimTransport(it.net, f"guest{number}").connect("p1", ())
                        visitors.append(Channel(stream, "guest", Patience(), loop.time))
                        it.tasks.create_task(visitors[-1].run(lambda *_: None))

            visiting = asyncio.create_task(visit())
            tokens, lost = await carried(swarm, 40, pause_s=0.2)
            await visiting
            for visitor in visitors:
                visitor.close()
            return tokens, lost

    assert run(main()) == (toy.generate([1, 2, 3], N_BLOCKS, 40), 0)


NOWHERE = ("/ip4/192.0.2.1/tcp/1",)


def test_who_names_a_hop_s_address_first_decides_for_nobody_else(monkeypatch):
    """A client names an address where nobody answers, again and again; others' sessions go over the same two hops."""
    usual = SimTransport.connect

    async def connect(self, peer_id, addrs):
        if tuple(addrs) == NOWHERE:
            await asyncio.Event().wait()
        return await usual(self, peer_id, addrs)

    monkeypatch.setattr(SimTransport, "connect", connect)

    async def main() -> tuple[list[int], float]:
        loop = asyncio.get_running_loop()
        async with world(3, [(0, 3), (3, 6)]) as it, it.client() as swarm:
            rogue = await stranger(it, "rogue")

            async def name_nowhere() -> None:
                for number in range(1000):
                    leave(rogue, named("rogue", number, "p1", NOWHERE))
                    await asyncio.sleep(0.01)

            misleading = asyncio.create_task(name_nowhere())
            await asyncio.sleep(1)
            began = loop.time()
            tokens = await generate(swarm, [1, 2, 3], 20, wait_s=20.0)
            took_s = loop.time() - began
            misleading.cancel()
            rogue.close()
            return tokens, took_s

    tokens, took_s = run(main())
    assert tokens == toy.generate([1, 2, 3], N_BLOCKS, 20)
    assert took_s < 2.0


@pytest.mark.parametrize("names", [1, 20])
def test_many_addresses_named_quickly_drive_out_nobody_else_s(monkeypatch, names):
    """Each is another one where nobody answers; the honest ones take 0.2 s to answer."""
    usual = SimTransport.connect

    async def connect(self, peer_id, addrs):
        if addrs and self.peer_id == "p0":
            await asyncio.Event().wait()
        await asyncio.sleep(0.2)
        return await usual(self, peer_id, addrs)

    monkeypatch.setattr(SimTransport, "connect", connect)

    async def main() -> tuple[list[int], float, int]:
        loop = asyncio.get_running_loop()
        async with world(3, [(0, 3), (3, 6)]) as it, it.client() as swarm:
            rogues = await strangers(it, names)
            misleading = asyncio.create_task(mislead(rogues, every_s=0.01))
            await asyncio.sleep(0.5)
            began = loop.time()
            tokens, lost = await carried(swarm, 20)
            took_s = loop.time() - began
            misleading.cancel()
            for _, rogue in rogues:
                rogue.close()
            return tokens, took_s, lost

    tokens, took_s, lost = run(main())
    assert (tokens, lost) == (toy.generate([1, 2, 3], N_BLOCKS, 20), 0)
    assert took_s < 2.0


@pytest.mark.parametrize(("names", "burst", "per_s"), [(1, 128, 4), (20, 1024, 32)])
def test_strangers_make_a_peer_dial_few_addresses(monkeypatch, names, burst, per_s):
    """One client, or twenty that are all the same one's, name eight addresses of a victim for each of many hops."""
    dialled, usual = [], SimTransport.connect

    async def connect(self, peer_id, addrs):
        if self.peer_id == "p0":
            dialled.extend(addrs)
        return await usual(self, peer_id, addrs)

    monkeypatch.setattr(SimTransport, "connect", connect)

    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with world(3, [(0, 6)]) as it:
            rogues = await strangers(it, names)
            began = loop.time()
            for number in range(2000):
                name, rogue = rogues[number % names]
                victims = tuple(f"/ip4/11.0.0.1/tcp/{1 + 8 * number + port}" for port in range(8))
                leave(rogue, named(name, number, f"hop{number}", victims))
                await asyncio.sleep(0.01)
            took_s = loop.time() - began
            for _, rogue in rogues:
                rogue.close()
            return took_s

    took_s = run(main())
    assert burst <= len(dialled) <= burst + per_s * took_s + per_s


def test_a_client_is_not_told_what_it_found_behind_an_address(monkeypatch):
    """Refused at once, no answer, somebody else: all one."""

    async def connect(self, peer_id, _addrs):
        if peer_id == "silent":
            await asyncio.Event().wait()
        raise HopClosed(peer_id, f"{peer_id} what a web server says")

    async def main() -> list[Refused]:
        told: list[Refused] = []
        async with world(3, [(0, 6)]) as it:
            rogue = await stranger(it, "rogue", told)
            monkeypatch.setattr(SimTransport, "connect", connect)
            for number, hop in enumerate(("closed", "web", "silent")):
                rogue.send(named("rogue", number, hop, NOWHERE))
            await asyncio.sleep(10)
            rogue.close()
        return [message for message in told if isinstance(message, Refused)]

    refused = run(main())
    assert {message.reason for message in refused} == {Reason.NEXT_HOP_LOST}
    assert sorted(message.text for message in refused) == [f"{hop} {UNREACHED}" for hop in ("closed", "silent", "web")]


def test_a_reason_that_is_told_again_gives_nobody_more_time():
    """A machine that is busy says so every two seconds; nobody else holds the blocks."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with world(3, [(0, 6)]) as it, it.client() as swarm:
            peer, pausing = it.peers["p0"], Pausing(10.0, loop.time)
            pausing.attach(peer.node)
            running = it.tasks.create_task(pausing.run(peer.node, peer.announcer))

            async def each(_number, _session) -> None:
                await asyncio.sleep(0.5)

            session = asyncio.create_task(generate(swarm, [1, 2, 3], 900, wait_s=1.0, each=each))
            await asyncio.sleep(5)
            began = loop.time()
            while not pausing.settled.is_set() or not pausing.reasons:
                pausing.hold("machine", "it is busy")
                await asyncio.sleep(2)
            took_s = loop.time() - began
            running.cancel()
            session.cancel()
            await asyncio.gather(session, return_exceptions=True)
            assert not peer.node.book.leases
            return took_s

    assert 10.0 <= run(main()) <= 14.0
