"""The serving node: one event loop between links, leases, scheduler and engine. Performs what the cores decide."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from shoal.peer.book import LeaseBook, Limits, Offer
from shoal.peer.channel import Channel
from shoal.peer.engine import EngineFault
from shoal.peer.errors import Reason
from shoal.peer.gather import Gather
from shoal.peer.job import Job, cut
from shoal.peer.lease import Run, Send
from shoal.peer.link import Patience
from shoal.peer.pool import ChannelPool, PoolConfig
from shoal.peer.scheduler import Budget, Scheduler, Slice
from shoal.peer.tally import Tally
from shoal.peer.wire import Close, Hidden, Open, Opened, Refused, Reroute

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal.peer.engine import Engine, Output
    from shoal.peer.lease import Action, Lease
    from shoal.peer.transport import Stream, Transport
    from shoal.peer.wire import Message

SWEEP_S = 1.0
UNUSED_S = 60.0


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What a node serves and within which bounds."""

    offer: Offer
    agent: str
    limits: Limits = Limits()
    budget: Budget = Budget()
    patience: Patience = Patience()
    clock: Callable[[], float] = time.perf_counter


class Node:
    """Serves leases over `transport` with `engine`. `async with node:` runs it; leaving closes every link."""

    def __init__(self, config: NodeConfig, engine: Engine, transport: Transport) -> None:
        self.config = config
        self.engine = engine
        self.transport = transport
        self.book = LeaseBook(config.offer, config.limits)
        self.tally = Tally()
        self._scheduler = Scheduler(config.budget)
        self._gather = Gather()
        self._jobs: dict[int, Job] = {}
        self._clients: dict[str, Channel] = {}
        self._finished: list[Lease] = []
        self._unused: dict[str, float] = {}  # peers whose link serves no lease, and since when
        self._busy = False
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._now = config.clock
        pool = PoolConfig(config.agent, config.patience, clock=config.clock)
        self._pool = ChannelPool(transport, pool, lambda _channel, _message: None, self._next_lost)
        self._tasks = asyncio.TaskGroup()
        self._running: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        await self._pool.__aenter__()
        work = (self._compute(), self._sweep(), self.transport.serve(self._serve))
        self._running = [self._tasks.create_task(part) for part in work]
        await self.transport.serving.wait()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for channel in list(self._clients.values()):
            channel.close()
        for task in self._running:
            task.cancel()
        await self._pool.__aexit__(*exc_info)
        await self._tasks.__aexit__(None, None, None)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for the engine."""
        return self._scheduler.tokens()

    def rtts(self) -> dict[str, float]:
        """Measured round trips to other peers, in seconds."""
        return self._pool.rtts()

    async def drain(self, timeout_s: float) -> bool:
        """Take no new leases and wait for the running ones; True if all ended in time."""
        self.book.draining = True
        try:
            async with asyncio.timeout(timeout_s):
                while self.book.leases:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def _serve(self, stream: Stream) -> None:
        """One incoming link, from a client or from a previous hop."""
        channel = Channel(stream, self.config.agent, self.config.patience, self._now)
        self._clients[channel.remote] = channel
        self.book.client_lost(channel.remote, self._now())  # whatever it held was opened over an earlier link
        try:
            await channel.run(self._on_message)
        finally:
            if self._clients.get(channel.remote) is channel:
                del self._clients[channel.remote]
                self.book.client_lost(channel.remote, self._now())

    def _on_message(self, channel: Channel, message: Message) -> None:
        if isinstance(message, Hidden):
            self._on_hidden(channel, message)
        elif isinstance(message, Open):
            self._on_open(channel, message)
        elif isinstance(message, Reroute):
            self._on_reroute(channel, message)
        elif isinstance(message, Close):
            self._on_close(channel, message)

    def _on_open(self, channel: Channel, request: Open) -> None:
        self._settle_replaced(request, channel.remote)
        lease = self.book.open(request, channel.remote)
        opened = Opened(session=request.session, epoch=request.epoch)
        channel.send(lease if isinstance(lease, Refused) else opened)

    def _on_close(self, channel: Channel, message: Close) -> None:
        lease = self.book.find(message.session, channel.remote)
        if lease is not None and message.epoch >= lease.epoch:
            self._end(lease)

    def _settle_replaced(self, request: Open, client: str) -> None:
        """A session that is opened anew loses its old lease first, with its jobs."""
        old = self.book.find(request.session, client)
        if old is not None and request.epoch > old.epoch:
            self._end(old)

    def _on_reroute(self, channel: Channel, message: Reroute) -> None:
        lease = self.book.find(message.session, channel.remote)
        if lease is None:
            channel.send(_unknown(message.session, message.epoch))
            return
        self._perform(lease, lease.reroute(message))

    def _on_hidden(self, channel: Channel, hidden: Hidden) -> None:
        lease = self.book.find(hidden.session)
        if lease is None:
            channel.send(_unknown(hidden.session, hidden.epoch))
            return
        self._perform(lease, lease.accept(hidden, channel.remote))

    def _perform(self, lease: Lease, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Run):
                number = self._scheduler.add(lease.session, action.hidden.count)
                self._jobs[number] = Job(lease, action, self._now())
                self._gather.returned(lease.session)
                self._wake.set()
            else:
                self._send(lease, action)

    def _send(self, lease: Lease, send: Send) -> None:
        if send.to != lease.owner:
            self._pool.send(send.to, lease.next_addrs, send.message)
            return
        channel = self._clients.get(lease.owner)
        if channel is not None and not channel.closed:
            channel.send(send.message)

    def _next_lost(self, peer_id: str, why: str) -> None:
        """A next hop cannot be reached: its leases' owners must know at once."""
        for lease in list(self.book.leases.values()):
            if lease.next == peer_id:
                self._perform(lease, lease.refuse(Reason.NEXT_HOP_LOST, f"{peer_id} {why}"))

    async def _compute(self) -> None:
        """Engine steps, as long as anything waits."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while len(self._scheduler):
                await self._wait_for_others()
                if batch := self._scheduler.next_batch():
                    await self._run_batch(batch)

    async def _wait_for_others(self) -> None:
        """Let sessions that were just answered join a step of decodes."""
        while self._scheduler.only_decodes() and (wait_s := self._gather.wait_s(self._now(), self.tally.decode_step_s)):
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
        self._gather.started()

    async def _run_batch(self, batch: list[Slice]) -> None:
        started = self._now()
        for piece in batch:
            job = self._jobs[piece.job]
            job.queue_s = started - job.arrived if job.queue_s is None else job.queue_s
        self._busy = True
        try:
            outputs = await self.engine.run([cut(self._jobs[piece.job], piece) for piece in batch])
        except EngineFault as fault:
            self._fail(batch, str(fault))
        else:
            self._settle(batch, outputs, self._now() - started)
        finally:
            self._busy = False
            self._release_finished()

    def _settle(self, batch: list[Slice], outputs: list[Output], compute_s: float) -> None:
        self.tally.add(sum(piece.count for piece in batch), len(batch), compute_s)
        for piece, output in zip(batch, outputs, strict=True):
            job = self._jobs.get(piece.job)
            if job is None:
                continue  # its lease ended while the engine ran
            job.parts.append(output)
            job.compute_s += compute_s
            if not output.finite:
                self._refuse(job.lease, Reason.BAD_OUTPUT, "the span's output is not finite")
            elif piece.done:
                self._finish(piece.job, job)

    def _finish(self, number: int, job: Job) -> None:
        del self._jobs[number]
        if job.run.hidden.count == 1:
            self._gather.answered(job.lease.session, self._now())
        payload = job.parts[0].payload if len(job.parts) == 1 else b"".join(part.payload for part in job.parts)
        times_s = (max(0.0, job.queue_s or 0.0), max(0.0, job.compute_s))
        self._perform(job.lease, job.lease.finish(job.run.hidden, payload, job.run.keep_rows, times_s))

    def _fail(self, batch: list[Slice], text: str) -> None:
        for lease in {id(job.lease): job.lease for piece in batch if (job := self._jobs.get(piece.job))}.values():
            self._refuse(lease, Reason.FAULT, text)

    def _refuse(self, lease: Lease, reason: Reason, text: str) -> None:
        """A lease that cannot go on is ended here; its owner goes elsewhere."""
        self._perform(lease, lease.refuse(reason, text))
        self._end(lease)

    def _end(self, lease: Lease) -> None:
        """End a lease now; its pages wait until no running engine step can touch them."""
        if self.book.find(lease.session) is not lease:
            return
        self.book.detach(lease)
        self._scheduler.drop(lease.session)
        self._gather.returned(lease.session)
        for number in [number for number, job in self._jobs.items() if job.lease is lease]:
            del self._jobs[number]
        self._finished.append(lease)
        if not self._busy:
            self._release_finished()

    def _release_finished(self) -> None:
        for lease in self._finished:
            self.book.free(lease)
        self._finished.clear()
        if not self.book.leases:
            self._idle.set()

    async def _sweep(self) -> None:
        """End the leases of clients that went away, and close links to next hops that nobody uses."""
        while True:
            await asyncio.sleep(SWEEP_S)
            for lease in self.book.sweep(self._now()):
                self._end(lease)
            self._drop_unused(self._now())

    def _drop_unused(self, now: float) -> None:
        """Close links to next hops that no lease has used for a while."""
        used = {lease.next for lease in self.book.leases.values()}
        self._unused = {peer: self._unused.get(peer, now) for peer in self._pool.peers() if peer not in used}
        for peer_id in [peer_id for peer_id, since in self._unused.items() if now - since > UNUSED_S]:
            self._pool.drop(peer_id)


def _unknown(session: bytes, epoch: int) -> Refused:
    text = "no such lease here: it ended, or this peer was restarted"
    return Refused(session=session, epoch=epoch, reason=Reason.UNKNOWN_LEASE, text=text, retry_s=0.0)
