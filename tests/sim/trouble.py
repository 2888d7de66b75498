"""Carries out a schedule's deeds on a world, and takes back what they did when their time is over."""

from __future__ import annotations

import asyncio
import itertools
import math
from typing import TYPE_CHECKING

from shoal.dht.record import Record
from shoal.peer.lease import Lease
from shoal.peer.wire import Open, session_name
from shoal.routing.announcement import Announcement, encode

from tests.sim.swarm import INVITE, N_BLOCKS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from shoal.peer.book import LeaseBook
    from shoal.peer.steps import Steps

    from tests.sim.network import Way
    from tests.sim.reach import Reach
    from tests.sim.schedule import Deed, Schedule
    from tests.sim.swarm import World

GHOSTS = 12
SLOWER = 10
FAR_S = 0.2


class Trouble:
    """`say(text)` hears of every deed. `stop_client(name, vanish)` ends a client, by force or as Ctrl-C does."""

    def __init__(
        self, it: World, plan: Schedule, reach: Reach, say: Callable[[str], None],
        stop_client: Callable[[str, bool], None],
    ) -> None:  # fmt: skip
        self._it, self._plan, self._reach, self._say, self._stop_client = it, plan, reach, say, stop_client
        self._tasks = asyncio.TaskGroup()
        self._numbers = itertools.count()
        self.deeds: list[str] = []

    async def run(self) -> None:
        """All deeds in turn; returns when each is taken back."""
        async with self._tasks:
            for deed in self._plan.deeds:
                await self.wait_for(deed)
                self.deeds.append(deed.kind)
                await getattr(self, "_" + deed.kind.replace(" ", "_"))(deed)
                self._changed()
                asyncio.get_running_loop().call_soon(self._changed)  # what it set going has begun by then

    async def wait_for(self, deed: Deed) -> None:
        """The moment when it is to be done."""
        await asyncio.sleep(deed.after_s)

    # -- machines and engines -------------------------------------------------------------------------------------

    async def _kill(self, deed: Deed) -> None:
        await self._kill_all([self._victim(deed, leaving=True)], deed)

    async def _kill_two(self, deed: Deed) -> None:
        names = self._in_use(leaving=True) if deed.in_use else self._running(leaving=True)
        first = int(deed.aim * len(names))
        await self._kill_all((names[first:] + names[:first])[:2], deed)

    async def _kill_the_new_one(self, deed: Deed) -> None:
        before = self._in_use(leaving=True)
        await self._kill_all([self._victim(deed, leaving=True)], deed)
        await asyncio.sleep(0.01 + 0.06 * deed.aim)
        if new := [name for name in self._in_use() if name not in before]:
            await self._kill_all(new[:1], deed)

    async def _lose_block(self, deed: Deed) -> None:
        block = int(deed.aim * N_BLOCKS)
        await self._kill_all([name for name in self._running(leaving=True) if self._holds(name, block)], deed)

    async def _kill_all(self, names: Iterable[str | None], deed: Deed) -> None:
        for name in names:
            if name is not None:
                self._say(f"{self._who(name)} is killed, for {deed.for_s:.2f} s")
                await self._it.kill(name)
                self._changed()  # the deed may go on for a while
                self._later(deed, lambda name=name: self._bring_back(name))

    async def _hang(self, deed: Deed) -> None:
        if (name := self._victim(deed, leaving=True)) is not None:
            self._say(f"{self._who(name)} hangs for {deed.for_s:.2f} s")
            self._it.net.hang(name)
            self._later(deed, lambda: self._resume(name))

    async def _drain(self, deed: Deed) -> None:
        if (name := self._victim(deed)) is not None:
            drain_s = (0.0, 0.3, 3.0)[int(3 * deed.aim)]
            self._say(f"{name} drains for {drain_s} s at most, and is back later")
            self._tasks.create_task(self._drain_and_return(name, drain_s, deed.for_s))

    async def _drain_and_return(self, name: str, drain_s: float, away_s: float) -> None:
        drained = await self._it.stop(name, drain_s)
        self._say(f"{name} has left" + ("" if drained else " while leases were open"))
        await asyncio.sleep(away_s)
        await self._bring_back(name)

    async def _fault(self, deed: Deed) -> None:
        if (name := self._victim(deed)) is not None:
            self._say(f"{name}'s next engine step fails")
            self._it.peers[name].engine.fault_next = True
            self._blip(name)

    async def _not_finite(self, deed: Deed) -> None:
        if (name := self._victim(deed)) is not None:
            self._say(f"{name}'s next engine step is not finite")
            self._it.peers[name].engine.spoil_next = True
            self._blip(name)

    async def _break(self, deed: Deed) -> None:
        if (name := self._victim(deed)) is not None:
            self._say(f"{name} loses its device with the next engine step")
            self._reach.unfit[name] += 1
            self._it.peers[name].engine.break_next = True
            self._later(deed, lambda: self._replace_broken(name))

    async def _replace_broken(self, name: str) -> None:
        self._reach.unfit[name] -= 1
        await self._it.kill(name)
        await self._bring_back(name)

    async def _slow(self, deed: Deed) -> None:
        if (name := self._victim(deed)) is not None:
            self._say(f"{name} is {SLOWER} times slower for {deed.for_s:.2f} s")
            engine = self._it.peers[name].engine
            engine.step_s *= SLOWER
            self._later(deed, lambda: self._set(engine, "step_s", engine.step_s / SLOWER))

    async def _full(self, deed: Deed) -> None:
        if (name := self._victim(deed)) is not None:
            steps = self._it.peers[name].node.steps
            request = open_message(session_name("somebody else", next(self._numbers).to_bytes(8, "big")), steps.book)
            if isinstance(lease := steps.book.open(request, "somebody else"), Lease):
                self._say(f"{name} has no KV left for {deed.for_s:.2f} s")
                self._reach.unfit[name] += 1
                self._later(deed, lambda: self._make_room(name, steps, lease))

    async def _make_room(self, name: str, steps: Steps, lease: Lease) -> None:
        self._reach.unfit[name] -= 1
        steps.end(lease)

    async def _bring_back(self, name: str) -> None:
        if name not in self._it.peers:
            self._say(f"{name} is back")
            await self._it.kill(name)
            await self._it.start(name)

    async def _resume(self, name: str) -> None:
        self._say(f"{name} goes on")
        self._it.net.resume(name)

    # -- ways -----------------------------------------------------------------------------------------------------

    async def _part(self, deed: Deed) -> None:
        if (pair := self._pair(deed)) is not None:
            self._cut(deed, [pair, pair[::-1]])

    async def _one_way(self, deed: Deed) -> None:
        if (pair := self._pair(deed)) is not None:
            self._cut(deed, [pair if deed.aim * 97 % 1 < 0.5 else pair[::-1]])

    async def _split(self, deed: Deed) -> None:
        names = self._all()
        here = names[int(deed.aim * len(names)) :: 2]
        others = [name for name in (*names, *self._clients()) if name not in here]
        self._cut(deed, [way for a, b in itertools.product(here, others) for way in ((a, b), (b, a))])

    def _cut(self, deed: Deed, ways: Sequence[Way]) -> None:
        ways = [way for way in ways if way not in self._it.net.cut]
        self._say(f"no way {', '.join('->'.join(way) for way in ways)} for {deed.for_s:.2f} s")
        self._it.net.part(ways)
        self._later(deed, lambda: self._heal(ways))

    async def _heal(self, ways: Sequence[Way]) -> None:
        self._say(f"there is a way {', '.join('->'.join(way) for way in ways)}")
        self._it.net.heal(ways)

    async def _far(self, deed: Deed) -> None:
        if (name := self._victim(deed)) is not None:
            self._say(f"{name} is {FAR_S} s farther away for {deed.for_s:.2f} s")
            extra_s = self._it.net.extra_s
            extra_s[name] = extra_s.get(name, 0.0) + FAR_S
            self._later(deed, lambda: self._nearer(name))

    async def _nearer(self, name: str) -> None:
        self._it.net.extra_s[name] -= FAR_S

    async def _jitter(self, deed: Deed) -> None:
        self._say(f"delays vary by {FAR_S} s for {deed.for_s:.2f} s")
        self._it.net.jitter_s += FAR_S
        self._later(deed, lambda: self._set(self._it.net, "jitter_s", self._it.net.jitter_s - FAR_S))

    async def _stall(self, deed: Deed) -> None:
        if (name := self._victim(deed)) is not None:
            self._say(f"nothing comes from {name} for {deed.for_s:.2f} s")
            for stream in self._it.net.streams_of(name):
                stream.stall(asyncio.get_running_loop().time() + deed.for_s)
            self._blip(name)

    async def _tear(self, deed: Deed) -> None:
        if (pair := self._pair(deed)) is not None:
            self._say(f"links {pair[0]}->{pair[1]} break in the middle of the next frame")
            for stream in self._it.net.streams_of(*pair):
                stream.tear()
            self._blip(*pair)

    async def _reset(self, deed: Deed) -> None:
        if (pair := self._pair(deed)) is not None:
            self._say(f"links {pair[0]}-{pair[1]} are reset")
            self._it.net.reset(*pair)
            self._blip(*pair)

    async def _daemon(self, deed: Deed) -> None:
        name = self._client(deed)
        self._say(f"{name}'s network daemon restarts, which takes {deed.for_s:.2f} s")
        self._it.net.reset(name)
        self._it.net.offline.add(name)
        self._later(deed, lambda: self._online(name))

    async def _online(self, name: str) -> None:
        self._it.net.offline.discard(name)

    # -- the directory, clients -----------------------------------------------------------------------------------

    async def _ghosts(self, _deed: Deed) -> None:
        self._say(f"{GHOSTS} peers are announced that do not exist")
        haunt(self._it, GHOSTS)

    async def _die(self, deed: Deed) -> None:
        self._end_client(deed, vanish=True)

    async def _leave(self, deed: Deed) -> None:
        self._end_client(deed, vanish=False)

    def _end_client(self, deed: Deed, *, vanish: bool) -> None:
        if len(self._clients()) > 1:
            name = self._client(deed)
            self._say(f"{name} {'vanishes' if vanish else 'stops'}")
            self._stop_client(name, vanish)

    # -- choosing, undoing ----------------------------------------------------------------------------------------

    def _later(self, deed: Deed, undo: Callable[[], Awaitable[None]]) -> None:
        self._tasks.create_task(self._undo_later(deed.for_s, undo))

    async def _undo_later(self, after_s: float, undo: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(after_s)
        await undo()
        self._changed()

    async def _set(self, target: object, name: str, value: float) -> None:
        setattr(target, name, value)

    def _changed(self) -> None:
        self._reach.note(asyncio.get_running_loop().time())

    def _blip(self, *names: str) -> None:
        self._reach.blip(names, asyncio.get_running_loop().time())

    def _victim(self, deed: Deed, *, leaving: bool = False) -> str | None:
        """`leaving`: it may be one that drains, too."""
        names = (self._in_use(leaving=leaving) if deed.in_use else []) or self._running(leaving=leaving)
        return names[int(deed.aim * len(names))] if names else None

    def _pair(self, deed: Deed) -> Way | None:
        """Two machines that talk, or a client and a peer."""
        net = self._it.net
        pairs = {(s.local, s.remote): None for name in (*self._all(), *self._clients()) for s in net.streams_of(name)}
        if deed.in_use and pairs:
            return list(pairs)[int(deed.aim * len(pairs))]
        name = self._victim(deed)
        return None if name is None else (self._client(deed), name)

    def _client(self, deed: Deed) -> str:
        names = self._clients()
        return names[int(deed.aim * 31 % 1 * len(names))]

    def _clients(self) -> list[str]:
        return sorted({job.client for job in self._plan.jobs})

    def _all(self) -> list[str]:
        return sorted(self._it.stock)

    def _running(self, *, leaving: bool = False) -> list[str]:
        names = [*self._it.peers, *(self._it.draining if leaving else ())]
        return [name for name in sorted(names) if name not in self._it.net.hung]

    def _in_use(self, *, leaving: bool = False) -> list[str]:
        peers = {**self._it.draining, **self._it.peers}
        return [name for name in self._running(leaving=leaving) if peers[name].node.book.leases]

    def _who(self, name: str) -> str:
        return f"{name}, which drains," if name in self._it.draining else name

    def _holds(self, name: str, block: int) -> bool:
        stock = self._it.stock[name]
        return stock.start <= block < stock.stop


def haunt(it: World, count: int) -> None:
    """Announce peers that do not exist, each better than all that do."""
    for number in range(count):
        name = f"ghost{number}"
        body = encode(
            Announcement(
                peer_id=name, sequence=0, expiry=0.0, start=0, stop=N_BLOCKS, state="online", quantization="none",
                dtype="float32", decode_s=1e-5, prefill_s=1e-6, queue=0, free_tokens=1 << 20, max_chunk=4096, addrs=(),
                rtts=(), version="1", name=name, revision="r1",
            )
        )  # fmt: skip
        it.table[name] = Record(INVITE.namespace, "toy", "r1", name, 1, math.ceil(it.wall()) + 3600.0, body)


def open_message(session: bytes, book: LeaseBook) -> Open:
    """Asks for all KV that is left."""
    offer = book.offer
    return Open(
        session=session, epoch=0, namespace=offer.namespace, revision=offer.revision, start=offer.start,
        stop=offer.stop, max_tokens=max(1, book.free_tokens), next_step=0, dtype="float32", prev="", next="",
        next_addrs=(), final=True, forward_replay=False, proof=b"",
    )  # fmt: skip
