"""A whole swarm in virtual time: the real node, lease, scheduler, session and planner over a simulated network."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from shoal.client.options import Model, SessionOptions
from shoal.client.prefix import Prompt
from shoal.client.swarm import Place, Swarm
from shoal.dht.directory import Nodes
from shoal.dht.invite import Invite
from shoal.dht.record import Record
from shoal.peer.announcer import Announcer, Facts
from shoal.peer.book import Limits, Offer
from shoal.peer.node import Node, NodeConfig
from shoal.routing.knowledge import CHUNK_MEASURED

from tests.sim.clock import on_machine
from tests.sim.network import SimNetwork, SimTransport
from tests.sim.toy import PAGE_TOKENS, WIDTH, ToyEngine, choose, embed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextvars import Context

N_BLOCKS = 6
WALL_START = 1_800_000_000.0
INVITE = Invite(swarm="sim", model="toy", peers=())
MODEL = Model(n_blocks=N_BLOCKS, width=WIDTH, revision="r1")


@dataclass
class Blinds:
    """Between clients and the directory. `empty`: they find nobody; `dark`: no look-up ends. Counts, as these may come
    together."""

    empty: int = 0
    dark: int = 0


NOBODY = Nodes()


class SimDirectory:
    """The directory's contract over a shared table: newest sequence per peer, expiring, withdrawn at once. `known`:
    peers that are nodes of it, and those named."""

    def __init__(self, table: dict[str, Record], peer_id: str, wall, known: Nodes = NOBODY, blinds=None) -> None:
        self.table, self.peer_id, self.wall, self.known, self.blinds = table, peer_id, wall, known, blinds or Blinds()
        self.sequence = 0

    async def announce(self, body: bytes, ttl_s: float) -> None:
        self.sequence = max(self.sequence + 1, int(self.wall() * 1000))
        self.table[self.peer_id] = Record(
            INVITE.namespace, "toy", "r1", self.peer_id, self.sequence, self.wall() + ttl_s, body
        )

    async def withdraw(self) -> None:
        self.table.pop(self.peer_id, None)

    async def lookup(self, within_s: float | None = None) -> list[Record]:
        await asyncio.sleep(0.02)
        while self.blinds.dark:
            await asyncio.sleep(0.1)
        if self.blinds.empty:
            return []
        return [record for record in self.table.values() if record.expiry > self.wall()]

    async def rest(self) -> list[Record]:
        return await self.lookup()

    def nodes(self) -> Nodes:
        return self.known


@dataclass(frozen=True)
class Stock:
    """What a peer is started with, and again after it died. `lie`: how many times faster than it is it says it is."""

    start: int
    stop: int
    limits: Limits = Limits()
    lie: float = 1.0
    engine: Mapping[str, float] = field(default_factory=dict)


@dataclass
class SimPeer:
    """One running peer."""

    peer_id: str
    engine: ToyEngine
    node: Node
    announcer: Announcer
    task: asyncio.Task[None]
    machine: Context

    def tell(self, what: Callable[..., object], *args: object) -> None:
        """Call something on its machine, by its clock."""
        self.machine.copy().run(what, *args)


@dataclass
class World:
    """Everything of one simulation; `seed` decides all chance in it."""

    seed: int
    rng: random.Random = field(init=False)
    net: SimNetwork = field(init=False)
    table: dict[str, Record] = field(default_factory=dict)
    stock: dict[str, Stock] = field(default_factory=dict)
    peers: dict[str, SimPeer] = field(default_factory=dict)
    draining: dict[str, SimPeer] = field(default_factory=dict)
    tasks: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup)
    nodes: Nodes = NOBODY
    blinds: Blinds = field(default_factory=Blinds)
    set_by_s: float = 0.0  # by how much somebody set all clocks on the wall

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.net = SimNetwork(random.Random(self.seed + 1))

    def wall(self) -> float:
        return WALL_START + self.set_by_s + self.net.now()

    async def add_peer(
        self, name: str, start: int, stop: int, limits: Limits = Limits(), lie: float = 1.0, **engine: float
    ) -> SimPeer:
        """Start a peer and wait until it is announced."""
        self.stock[name] = Stock(start, stop, limits, lie, engine)
        return await self.start(name)

    async def start(self, name: str) -> SimPeer:
        """Start a peer with what it had before, on a machine that is up again if it was down."""
        self.net.revive(name)
        stock = self.stock[name]
        toy = ToyEngine(stock.start, stock.stop, **stock.engine)
        offer = Offer(
            INVITE.namespace, "r1", stock.start, stock.stop, WIDTH, toy.n_pages, PAGE_TOKENS,
            lambda proof, client, session: INVITE.check(proof, client, name, session),
        )  # fmt: skip
        config = NodeConfig(offer, "shoal-sim", stock.limits, clock=asyncio.get_running_loop().time)
        node = Node(config, toy, SimTransport(self.net, name))
        each_s = 1.0 / (stock.stop - stock.start) / stock.lie
        decode_s = (toy.step_s + toy.token_s) * each_s
        prefill_s = (toy.step_s / CHUNK_MEASURED + toy.token_s) * each_s
        facts = Facts(name, "r1", "none", "float32", decode_s, prefill_s, (), "1", name)
        announcer = Announcer(SimDirectory(self.table, name, self.wall), node, facts)
        ready = asyncio.Event()
        machine = on_machine(name)
        task = self.tasks.create_task(_serve(node, announcer, ready), context=machine)
        peer = self.peers[name] = SimPeer(name, toy, node, announcer, task, machine)
        await ready.wait()
        return peer

    async def kill(self, name: str) -> None:
        """kill -9."""
        self.net.kill(name)
        for running in (self.peers, self.draining):
            if (peer := running.pop(name, None)) is not None:
                peer.task.cancel()
        await asyncio.sleep(0)

    async def stop(self, name: str, drain_s: float = 5.0) -> bool:
        """SIGTERM: withdraw, drain, leave."""
        peer = self.draining[name] = self.peers.pop(name)
        peer.tell(peer.node.leave)
        await peer.announcer.withdraw()
        drained = await peer.node.drain(drain_s)
        if self.draining.get(name) is peer:  # it may have died meanwhile, and be back
            del self.draining[name]
            self.net.servers.pop(name, None)
            peer.task.cancel()
        return drained

    @asynccontextmanager
    async def client(self, name: str = "client") -> AsyncIterator[Swarm]:
        """Join as a client."""
        place = Place(
            SimTransport(self.net, name), SimDirectory(self.table, name, self.wall, self.nodes, self.blinds),
            INVITE,
            refresh_s=1.0, wall=self.wall, clock=asyncio.get_running_loop().time,
            rng=random.Random(f"{self.seed} {name}"), random_bytes=random.Random(f"{self.seed} {name} bytes").randbytes,
        )  # fmt: skip
        async with Swarm(place, MODEL) as swarm:
            yield swarm


async def _serve(node: Node, announcer: Announcer, ready: asyncio.Event) -> None:
    async with node:
        await announcer.announce()
        ready.set()
        await announcer.run()


@asynccontextmanager
async def world(seed: int, spans: Sequence[tuple[int, int]]) -> AsyncIterator[World]:
    """A swarm of toy peers p0, p1, ... with the given spans."""
    it = World(seed)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(it.net.tasks)
        await stack.enter_async_context(it.tasks)
        for index, (start, stop) in enumerate(spans):
            await it.add_peer(f"p{index}", start, stop)
        yield it
        for peer in (*it.peers.values(), *it.draining.values()):
            peer.task.cancel()


async def generate(
    swarm: Swarm,
    prompt: Sequence[int],
    count: int,
    chunk_tokens: int | None = 8,
    wait_s: float = 0.0,
    each=None,
    named=False,
    user: str = "",
    begun=None,
) -> list[int]:
    """Greedy tokens through the simulated swarm; `each(number, session)` is awaited after every token. `named`: tell
    the session its prompt, so that peers may hold its beginning from before; `user`: as in `Prompt`. Before all,
    `begun(session)` is called."""
    tokens = list(prompt)
    options = SessionOptions(
        max_tokens=len(prompt) + count, chunk_tokens=chunk_tokens, wait_s=wait_s,
        prompt=Prompt(tuple(prompt), user=user) if named else None,
    )  # fmt: skip
    async with swarm.session(options) as session:
        if begun is not None:
            begun(session)
        session.recall_with(lambda a, b: states(tokens[a:b]))
        new = list(prompt)
        while len(tokens) < len(prompt) + count:
            out = await session.step(states(new))
            new = [choose(out[-1].tolist())]
            tokens += new
            if each is not None:
                await each(len(tokens) - len(prompt), session)
    return tokens[len(prompt) :]


def states(tokens: Sequence[int]) -> torch.Tensor:
    return torch.tensor([embed(token) for token in tokens], dtype=torch.float32)
