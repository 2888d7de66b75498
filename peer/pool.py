"""Channels that this node opened to others, one a peer, when first needed. Knows no sessions and no tensors."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Self

from shoal.peer.channel import CLOGGED_BYTES, MAX_QUEUED_BYTES, Channel
from shoal.peer.dialling import NetworkDials, Way, one_too_many
from shoal.peer.errors import HopClosed
from shoal.peer.line import MEMORY_S, Line
from shoal.peer.link import Patience
from shoal.peer.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from shoal.peer.transport import Stream, Transport
    from shoal.peer.wire import Message

MOST_WAYS = 32  # to one peer that are tried at a time, one of each asker,
CHANCE_S = 1.0  # each for at least so long: whoever names many drives nobody else's out
UNREACHED = "cannot be reached"


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """How a pool connects. `agent` is this program's name and version; `line` is shared with other links of this node;
    `on_room(peer_id)` is called when a channel that was clogged is not any more. `on_late(peer_id, why)`: something
    waits for a channel that is being opened for longer than a silent one would be kept; said again when another channel
    stands, and after as long again. It may stand yet. `grant(asker, addrs)`: those of the addresses that somebody named
    which may be dialled now. `discreet`: of a peer that was not reached no more is said than that."""

    agent: str
    patience: Patience = Patience()
    connect_timeout_s: float = 5.0
    clock: Callable[[], float] = time.perf_counter
    line: Line = field(default_factory=Line)
    on_room: Callable[[str], None] = lambda _peer_id: None
    on_late: Callable[[str, str], None] = lambda _peer_id, _why: None
    grant: Callable[[str, tuple[str, ...]], tuple[str, ...]] = lambda _asker, addrs: addrs
    discreet: bool = False


@dataclass(slots=True)
class _Entry:
    """A channel, or what waits until it stands. `ways`: addresses by who named them, each list of them tried beside the
    others. `why`: what ended it before that, if we did."""

    task: asyncio.Task[None] | None = None
    ways: dict[object, Way] = field(default_factory=dict)
    named: asyncio.Event = field(default_factory=asyncio.Event)
    channel: Channel | None = None
    waiting: Turns = field(default_factory=Turns)
    why: str = ""


class ChannelPool:
    """Sends to peers by id. `on_message(channel, message)` gets what they answer; `on_open(peer_id)` is called when a
    channel stands, `on_lost(peer_id, why)` once when it ends or cannot be opened. Use as `async with`: leaving closes
    every channel, and what is sent after that goes nowhere."""

    def __init__(
        self,
        transport: Transport,
        config: PoolConfig,
        on_message: Callable[[Channel, Message], None],
        on_lost: Callable[[str, str], None],
        on_open: Callable[[str], None] | None = None,
    ) -> None:
        self._transport = transport
        self._config = config
        self._on_message = on_message
        self._on_lost, self._on_open = on_lost, on_open
        self._entries: dict[str, _Entry] = {}
        self._late: dict[str, _Entry] = {}  # that were still being opened after so long; some stand or are gone by now
        self._rates: dict[str, tuple[float, float]] = {}  # when last seen, bytes/s; of links that have ended too
        self._dials = NetworkDials()
        self._tasks = asyncio.TaskGroup()
        self._left = False

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._left = True
        for entry in self._entries.values():
            if entry.task is not None:
                entry.task.cancel()
        await self._tasks.__aexit__(None, None, None)

    def send(self, peer_id: str, addrs: Sequence[str], message: Message, asker: str = "") -> None:
        """Queue a message to a peer, connecting first if need be; a failure shows in `on_lost`."""
        self.connect(peer_id, addrs, asker)
        entry = self._entries.get(peer_id)
        if entry is None or entry.why:
            return
        if entry.channel is None:
            entry.waiting.add(message)
            if entry.waiting.bytes > MAX_QUEUED_BYTES and entry.task is not None:
                entry.why = "has not answered yet, and too much waits for it"
                asyncio.get_running_loop().call_soon(entry.task.cancel)  # once it has begun, and so tells of its end
        elif not entry.channel.closed:
            entry.channel.send(message)

    def connect(self, peer_id: str, addrs: Sequence[str], asker: str = "") -> None:
        """Open a channel if there is none yet, before there is anything to send. `asker`: the stranger who named these
        addresses."""
        entry = self._entries.get(peer_id)
        if entry is None and not self._left:
            entry = self._entries[peer_id] = _Entry()
            self._name(entry, tuple(addrs), asker)
            entry.task = self._tasks.create_task(self._run(peer_id, entry))
            self._look_later(peer_id, entry)
        elif entry is not None and entry.channel is None:
            self._name(entry, tuple(addrs), asker)

    def _name(self, entry: _Entry, addrs: tuple[str, ...], asker: str) -> None:
        """Try these addresses as well, in place of what their asker named before, of one that a network named which
        has more, or of the oldest."""
        now, ways, whose = self._config.clock(), entry.ways, asker or addrs
        if any(way.addrs == addrs for way in ways.values()):
            return
        network = self._transport.whence(asker) if asker else None
        old: object = whose if whose in ways else None
        crowded = False
        if old is None and len(ways) >= MOST_WAYS:
            old, crowded = one_too_many(ways, network)
        if old is not None and not crowded and now - ways[old].since < CHANCE_S:
            return
        ways.pop(old, None)
        granted = self._config.grant(asker, self._dials.grant(network, addrs, now))
        ways[whose] = Way(addrs, granted, now, network)
        entry.named.set()

    def flush(self, peer_id: str) -> None:
        """Let what was sent to a peer in this tick leave now."""
        entry = self._entries.get(peer_id)
        if entry is not None and entry.channel is not None:
            entry.channel.flush()

    def rtts(self) -> dict[str, float]:
        """Measured round trips in seconds, by peer."""
        channels = [entry.channel for entry in self._entries.values() if entry.channel is not None]
        return {channel.remote: channel.link.rtt_s for channel in channels if channel.link.rtt_s is not None}

    def rates(self) -> dict[str, float]:
        """Bytes/s that the ways to peers were last seen to carry while more waited, where that was seen."""
        now = self._config.clock()
        for entry in self._entries.values():
            if entry.channel is not None and entry.channel.link.flow.proven:
                self._rates[entry.channel.remote] = now, entry.channel.link.flow.proven
        self._rates = {remote: seen for remote, seen in self._rates.items() if now - seen[0] < MEMORY_S}
        return {remote: rate for remote, (_, rate) in self._rates.items()}

    def upload(self) -> float:
        """Bytes/s that this machine was seen to send, 0 if unknown."""
        return self._config.line.upload(self._config.clock())

    def clogged(self, peer_id: str) -> bool:
        """Whether so much waits for a peer that whoever makes more should wait too."""
        entry = self._entries.get(peer_id)
        if entry is None:
            return False
        return entry.waiting.bytes > CLOGGED_BYTES if entry.channel is None else entry.channel.clogged

    def forget(self, peer_id: str, session: bytes, epoch: int) -> None:
        """What waits for a lease that has ended need not be sent."""
        entry = self._entries.get(peer_id)
        if entry is not None:
            (entry.waiting if entry.channel is None else entry.channel).forget(session, epoch)

    def stands(self, peer_id: str) -> bool:
        """Whether there is a channel to a peer."""
        entry = self._entries.get(peer_id)
        return entry is not None and entry.channel is not None

    def drop(self, peer_id: str) -> None:
        """Close the channel to a peer, if there is one."""
        entry = self._entries.pop(peer_id, None)
        if entry is not None and entry.task is not None:
            entry.task.cancel()

    def peers(self) -> list[str]:
        """Peers with a channel, or on the way to one."""
        return list(self._entries)

    async def _run(self, peer_id: str, entry: _Entry) -> None:
        try:
            await self._pump(peer_id, entry)
        except HopClosed as error:
            entry.why = str(error)
        except TimeoutError:
            entry.why = f"did not answer within {self._config.connect_timeout_s:g} s"
        finally:
            if self._entries.get(peer_id) is entry:  # not one that was dropped on purpose
                del self._entries[peer_id]
                if entry.channel is None:
                    self._config.on_room(peer_id)  # as a channel does when it closes
                why = entry.why or (entry.channel.why if entry.channel is not None else UNREACHED)
                if entry.channel is None and self._config.discreet:
                    why = UNREACHED
                self._on_lost(peer_id, why)

    async def _pump(self, peer_id: str, entry: _Entry) -> None:
        stream = await self._reach(peer_id, entry)
        config, on_room = self._config, partial(self._config.on_room, peer_id)
        waiting, entry.waiting = entry.waiting, Turns()
        was_clogged = waiting.bytes > CLOGGED_BYTES
        entry.channel = Channel(stream, config.agent, config.patience, config.clock, config.line, on_room, waiting)
        entry.channel.ping()
        if self._on_open is not None:
            self._on_open(peer_id)
        self._tell_late(tuple(self._late))
        if was_clogged and not entry.channel.clogged:
            on_room()
        await entry.channel.run(self._on_message)

    def _look_later(self, peer_id: str, entry: _Entry) -> None:
        asyncio.get_running_loop().call_later(self._config.patience.dead_after_s, self._look, peer_id, entry)

    def _look(self, peer_id: str, entry: _Entry) -> None:
        if self._entries.get(peer_id) is entry and entry.channel is None:
            self._late[peer_id] = entry
            self._tell_late((peer_id,))
            self._look_later(peer_id, entry)

    def _tell_late(self, names: Collection[str]) -> None:
        for name in names:
            entry = self._late[name]
            if self._entries.get(name) is not entry or entry.channel is not None:
                del self._late[name]
            elif entry.waiting:
                self._config.on_late(name, f"has not answered for {self._config.patience.dead_after_s:g} s")

    async def _reach(self, peer_id: str, entry: _Entry) -> Stream:
        """By whichever way leads there first. Anybody may have named some that lead nowhere, before others or after."""
        tries: dict[tuple[str, ...], asyncio.Task[Stream]] = {}
        chosen: asyncio.Task[Stream] | None = None
        try:
            async with asyncio.timeout(2 * self._config.connect_timeout_s):  # however many more are named
                while chosen is None:
                    entry.named.clear()
                    wanted = dict.fromkeys(way.granted for way in entry.ways.values())
                    for way in tries.keys() - wanted.keys():
                        tries.pop(way).cancel()
                    tries |= {way: asyncio.create_task(self._try(peer_id, way)) for way in wanted if way not in tries}
                    if all(task.done() for task in tries.values()):
                        return await tries[next(reversed(wanted))]
                    chosen = await _first(tries.values(), entry.named)
                return chosen.result()
        finally:
            for task in tries.values():
                if task is not chosen:
                    task.cancel()
                    task.add_done_callback(_close_unused)

    async def _try(self, peer_id: str, way: Sequence[str]) -> Stream:
        async with asyncio.timeout(self._config.connect_timeout_s):
            return await self._transport.connect(peer_id, way)


async def _first(tries: Collection[asyncio.Task[Stream]], news: asyncio.Event) -> asyncio.Task[Stream] | None:
    """The first try that has led to a stream; None once another has failed, or there is news."""
    told = asyncio.create_task(news.wait())
    try:
        waiting = [task for task in tries if not task.done()]
        await asyncio.wait([told, *waiting], return_when="FIRST_COMPLETED")
    finally:
        told.cancel()
    return next((task for task in waiting if task.done() and not task.cancelled() and not task.exception()), None)


def _close_unused(task: asyncio.Task[Stream]) -> None:
    if not task.cancelled() and not task.exception():
        task.result().close()
