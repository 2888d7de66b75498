"""The serving node: links on one side, leases on the other, messages between them. `Steps` runs what leases accept."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Self

from shoal.peer.book import LeaseBook, Limits, Offer
from shoal.peer.channel import Channel
from shoal.peer.dialling import DialBudget
from shoal.peer.door import Door
from shoal.peer.errors import Reason
from shoal.peer.incoming import has_room, note_arriving, relieve, unfinished
from shoal.peer.lease import Run, Send
from shoal.peer.line import Line
from shoal.peer.link import IMPATIENT, Patience
from shoal.peer.pool import ChannelPool, PoolConfig
from shoal.peer.steps import Steps
from shoal.peer.toll import Toll
from shoal.peer.wire import Close, Hidden, Leaving, Open, Opened, Refused, Reroute

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal.peer.duty import Duty
    from shoal.peer.engine import Engine
    from shoal.peer.lease import Action, Lease
    from shoal.peer.scheduler import Budget
    from shoal.peer.transport import Stream, Transport
    from shoal.peer.wire import Message

SWEEP_S = 1.0
UNUSED_S = 60.0


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What a node serves and within which bounds; `budget` None: what the engine says of its steps. `at_rest` is called
    in a thread when the last lease has ended. `line`: how much of this machine's line may be used. `duty`: how the
    engine rests between its steps."""

    offer: Offer
    agent: str
    limits: Limits = Limits()
    budget: Budget | None = None
    patience: Patience = Patience()
    clock: Callable[[], float] = time.perf_counter
    at_rest: Callable[[], None] | None = None
    line: Line = field(default_factory=Line)
    duty: Duty | None = None


class Node:
    """Serves leases over `transport` with `engine`. `async with node:` runs it; leaving closes every link."""

    def __init__(self, config: NodeConfig, engine: Engine, transport: Transport) -> None:
        self.config = config
        self.engine = engine
        self.transport = transport
        self.book = LeaseBook(config.offer, config.limits)
        self.steps = Steps(engine, self.book, self, config)
        self.tally = self.steps.tally
        self._door = Door(self.book, self.steps)
        self.broken = self.steps.broken  # set when the device is lost for good; every lease has ended then
        self._links: dict[int, Channel] = {}  # all that others opened
        self._numbers = count()
        self._held: dict[int, int] = {}  # by link, of messages in parts when that was looked at last
        self._unused: dict[str, float] = {}  # peers whose link serves no lease, and since when
        self._now = config.clock
        self._line = config.line
        self._dials = DialBudget()
        pool = PoolConfig(  # of next hops, for which sessions wait
            config.agent, IMPATIENT, clock=config.clock, line=config.line, on_room=lambda _peer_id: self.steps.wake(),
            on_late=self._next_lost, grant=self._grant, discreet=True,
        )  # fmt: skip
        self._pool = ChannelPool(transport, pool, lambda _channel, _message: None, self._next_lost)
        self._tasks = asyncio.TaskGroup()
        self._running: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        await self._pool.__aenter__()
        work = (self.steps.run(), self._sweep(), self.transport.serve(self._serve))
        self._running = [self._tasks.create_task(part) for part in work]
        await self.transport.serving.wait()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for channel in list(self._links.values()):
            channel.close()
        for task in self._running:
            task.cancel()
        await self._pool.__aexit__(*exc_info)
        await self._tasks.__aexit__(None, None, None)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for the engine."""
        return self.steps.scheduler.tokens()

    def rtts(self) -> dict[str, float]:
        """Measured round trips to other peers, in seconds."""
        return self._pool.rtts()

    def rates(self) -> dict[str, float]:
        """Bytes/s that the ways to other peers were seen to carry."""
        return self._pool.rates()

    def upload(self) -> float:
        """Bytes/s that this machine was seen to send, 0 if unknown."""
        return self._line.upload(self._now())

    def leave(self) -> None:
        """Take no new leases, and ask the owners of the running ones to move them elsewhere."""
        self.book.draining = True
        self._hand_over()

    def pause(self) -> None:
        """As `leave`, until `resume`."""
        self.book.paused = True
        self._hand_over()

    def resume(self) -> None:
        """Take leases again, at once: weights and cached prefixes are still there."""
        self.book.paused = False

    def dismiss(self, text: str) -> None:
        """End the leases that are left; their owners are told why and go elsewhere, or wait."""
        for lease in list(self.book.leases.values()):
            self.steps.refuse(lease, Reason.DRAINING, text)

    async def drain(self, timeout_s: float) -> bool:
        """Leave, and wait until all leases have ended; True if they did in time."""
        if not self.book.draining:
            self.leave()
        return await self.emptied(timeout_s)

    async def emptied(self, timeout_s: float) -> bool:
        """Wait until all leases have ended; True if they did in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.book.leases:
                    self.steps.idle.clear()
                    await self.steps.idle.wait()
        except TimeoutError:
            return False
        return True

    def _hand_over(self) -> None:
        for lease in self.book.leases.values():
            self._send(lease, Send(lease.owner, Leaving(session=lease.session, epoch=lease.epoch)))

    async def _serve(self, stream: Stream) -> None:
        """One incoming link, from a client or from a previous hop."""
        config = self.config
        if not has_room(self._links, self.book.leases.values(), stream.remote):
            stream.close()
            return
        channel = Channel(stream, config.agent, config.patience, self._now, self._line, self.steps.wake, toll=Toll())
        channel.link.parts.room = lambda: unfinished(self._links, self.book.leases.values(), stream.remote)
        number = next(self._numbers)
        self._links[number] = channel
        try:
            await channel.run(partial(self._on_message, number))
        finally:
            del self._links[number]
            self.book.link_lost(number, self._now())

    def _on_message(self, number: int, channel: Channel, message: Message) -> None:
        if isinstance(message, Hidden):
            self._on_hidden(channel, message)
        elif isinstance(message, Open):
            self._on_open(number, channel, message)
        elif isinstance(message, Reroute):
            self._on_reroute(channel, message)
        elif isinstance(message, Close):
            self._on_close(channel, message)

    def _on_open(self, number: int, channel: Channel, request: Open) -> None:
        """A lease belongs to the link that it is opened over. A client may have given that link up already, and what it
        sent over it may come late, in whatever order: nothing that is opened over another one is touched by that."""
        client = channel.remote
        self._settle_replaced(request, client)
        lease = self._door.open(request, client, number, self.transport.whence(client), self._now())
        if isinstance(lease, Refused):
            channel.send(lease)
        else:
            channel.send(Opened(session=request.session, epoch=request.epoch, cached=lease.position))
            if request.next:
                # The first states shall not wait for it.
                self._pool.connect(request.next, request.next_addrs, client)

    def _on_close(self, channel: Channel, message: Close) -> None:
        lease = self.book.find(message.session, channel.remote)
        if lease is not None and message.epoch >= lease.epoch:
            if not self.steps.moving(lease):
                self.book.residency.name(lease.holding, message.prefix)
            self.steps.end(lease)
            self._pool.forget(lease.next, lease.session, lease.epoch)

    def _settle_replaced(self, request: Open, client: str) -> None:
        """A session that is opened anew loses its old lease first, with its jobs."""
        old = self.book.find(request.session, client)
        if old is not None and request.epoch > old.epoch:
            self.steps.end(old)

    def _on_reroute(self, channel: Channel, message: Reroute) -> None:
        lease = self.book.find(message.session, channel.remote)
        if lease is None:
            channel.send(_unknown(message.session, message.epoch))
            return
        lease.heard = self._now()
        self.book.residency.rerouted(lease.holding)
        if message.epoch > lease.epoch:  # what waits for the next hop is of the time before, and comes again if need be
            self._pool.forget(lease.next, lease.session, lease.epoch)
        self.perform(lease, lease.reroute(message, self._now()))

    def _on_hidden(self, channel: Channel, hidden: Hidden) -> None:
        lease = self.book.addressed(hidden.session)
        if lease is None:
            channel.send(_unknown(hidden.session, hidden.epoch))
            return
        lease.heard = self._now()
        self.perform(lease, lease.accept(hidden, channel.remote))

    def perform(self, lease: Lease, actions: Sequence[Action], *, at_once: bool = False) -> None:
        """Do what a lease decided. `at_once`: the next hop gets its states before anything else is done."""
        added = False
        for action in actions:
            if isinstance(action, Run):
                self.steps.add(lease, action)
                added = True
                continue
            self._send(lease, action)
            if at_once and action.to != lease.owner:
                self._pool.flush(action.to)
        if added:
            self.steps.go()
        if at_once and (channel := self._links.get(lease.terms.link)) is not None:
            channel.flush()

    def _send(self, lease: Lease, send: Send) -> None:
        if send.to != lease.owner:
            self._pool.send(send.to, lease.next_addrs, send.message, lease.owner)
            return
        channel = self._links.get(lease.terms.link)
        if channel is not None and not channel.closed:
            channel.send(send.message)

    def _grant(self, asker: str, addrs: tuple[str, ...]) -> tuple[str, ...]:
        return self._dials.grant(asker, addrs, self._now())

    def clogged(self, lease: Lease) -> bool:
        """Whether what a lease's prompts give would only wait for the line to its next hop."""
        if lease.next != lease.owner:
            return self._pool.clogged(lease.next)
        channel = self._links.get(lease.terms.link)
        return channel is not None and channel.clogged

    def _next_lost(self, peer_id: str, why: str) -> None:
        """A next hop cannot be reached, or not soon: its leases' owners must know at once."""
        for lease in list(self.book.leases.values()):
            if lease.next == peer_id:
                self.perform(lease, lease.refuse(Reason.NEXT_HOP_LOST, f"{peer_id} {why}"))

    async def _sweep(self) -> None:
        """End the leases of clients that went away, and close links to next hops that nobody uses."""
        busy = False
        while True:
            await asyncio.sleep(SWEEP_S)
            for lease in self.book.sweep(self._now()):
                self.steps.end(lease)
            self._drop_unused(self._now())
            note_arriving(self._links, self.book.leases.values(), self._held, self._now())
            relieve(self._links, self.book.leases.values())
            busy, was_busy = bool(self.book.leases), busy
            if was_busy and not busy and self.config.at_rest is not None:
                await asyncio.to_thread(self.config.at_rest)

    def _drop_unused(self, now: float) -> None:
        """Close links to next hops that no lease has used for a while."""
        used = {lease.next for lease in self.book.leases.values()}
        self._unused = {peer: self._unused.get(peer, now) for peer in self._pool.peers() if peer not in used}
        for peer_id in [peer_id for peer_id, since in self._unused.items() if now - since > UNUSED_S]:
            self._pool.drop(peer_id)


def _unknown(session: bytes, epoch: int) -> Refused:
    text = "no such lease here: it ended, or this peer was restarted"
    return Refused(session=session, epoch=epoch, reason=Reason.UNKNOWN_LEASE, text=text, retry_s=0.0)
