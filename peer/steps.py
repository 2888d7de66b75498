"""The engine's loop: what waits becomes engine steps, pages are moved for it, outputs go back to their leases.

Performs what scheduler and residency decide; knows no links. A lease that ends while the engine runs keeps its pages
until the step is over.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from shoal.peer.errors import Reason
from shoal.peer.gather import Gather
from shoal.peer.holding import Restore, Save
from shoal.peer.job import Job, cut
from shoal.peer.order import EngineFault
from shoal.peer.scheduler import Budget, Scheduler
from shoal.peer.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.peer.book import LeaseBook
    from shoal.peer.engine import Engine, Output, Piece
    from shoal.peer.holding import Holding, Move
    from shoal.peer.lease import Action, Lease, Run
    from shoal.peer.node import NodeConfig
    from shoal.peer.scheduler import Slice


class Desk(Protocol):
    """Who passes messages on: the node."""

    def perform(self, lease: Lease, actions: Sequence[Action], *, at_once: bool = False) -> None:
        """Do what a lease decided. `at_once`: the next hop gets its states before anything else is done."""
        ...

    def clogged(self, lease: Lease) -> bool:
        """Whether what a lease's prompts give would only wait for the line to its next hop."""
        ...


class Steps:
    """Runs the steps of all leases of a book. `faulted` is set by every fault of the device's, `broken` when it is lost
    for good."""

    def __init__(self, engine: Engine, book: LeaseBook, desk: Desk, config: NodeConfig) -> None:
        self.engine, self.book, self.tally = engine, book, Tally()
        self.scheduler = Scheduler(config.budget or Budget(engine.max_step_tokens, engine.max_batch))
        self.jobs: dict[int, Job] = {}
        self.faulted, self.broken = asyncio.Event(), asyncio.Event()
        self.idle = asyncio.Event()  # set whenever the last lease has gone
        self._desk, self._now, self._duty = desk, config.clock, config.duty
        self._rest_s = 0.0  # owed for the last step
        self._residency = book.residency
        self._gather = Gather()
        self._finished: list[Lease] = []
        self._busy = False  # with a step of the engine, or with moves before one
        self._waiting = False  # for something to do
        self._planned: tuple[list[Slice], list[Move]] | None = None
        self._moving: set[Holding] = set()  # whose KV is on its way between the device and host memory
        self._wake = asyncio.Event()

    def add(self, lease: Lease, run: Run) -> None:
        """A step was accepted; `go` has it run."""
        number = self.scheduler.add(lease.session, run.hidden.count, lease.owner, lease.priority)
        self.jobs[number] = Job(lease, run, self._now())
        lease.holding.jobs += 1
        self._gather.returned(lease.session)

    def go(self) -> None:
        """What was added runs: now, if it is quick and nobody else is expected, or else when its turn comes."""
        if self._waiting and not self._busy and self._duty is None and self._is_quick():
            self._run_now()
        else:
            self._wake.set()

    def wake(self) -> None:
        """Something that steps wait for may have come."""
        self._wake.set()

    def moving(self, lease: Lease) -> bool:
        """Whether a lease's pages may not hold its KV yet, or never will."""
        return lease.holding in self._moving

    def refuse(self, lease: Lease, reason: Reason, text: str) -> None:
        """A lease that cannot go on is ended; its owner goes elsewhere."""
        self._desk.perform(lease, lease.refuse(reason, text))
        self.end(lease)

    def end(self, lease: Lease) -> None:
        """End a lease now; its pages wait until no running engine step can touch them."""
        if self.book.find(lease.session) is not lease:
            return
        self.book.detach(lease)
        self.scheduler.drop(lease.session)
        self._gather.returned(lease.session)
        for number in [number for number, job in self.jobs.items() if job.lease is lease]:
            del self.jobs[number]
        self._finished.append(lease)
        if not self._busy:
            self._release_finished()
        self._wake.set()  # somebody may wait for its pages

    async def run(self) -> None:
        """Engine steps, as long as anything waits; until cancelled."""
        while True:
            self._waiting = True
            await self._wake.wait()
            self._waiting = False
            self._wake.clear()
            while self.scheduler or self._planned:
                if not self._planned:
                    await self._wait_for_others()
                await self._step()
                if self._rest_s:
                    await asyncio.sleep(self._rest_s)
                    self._rest_s = 0.0

    async def _wait_for_others(self) -> None:
        """Let sessions that were just answered join a step of decodes."""
        while self.scheduler.only_decodes() and (wait_s := self._gather.wait_s(self._now(), self.tally.decode_step_s)):
            await self._wait(wait_s)
        self._gather.started()

    async def _wait(self, timeout_s: float) -> None:
        """For news, but no longer than that."""
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()

    def _is_quick(self) -> bool:
        """Whether all that waits is one job, alone, which the engine may run on this thread."""
        if len(self.jobs) != 1 or not self._gather.expects_nobody():
            return False
        (job,) = self.jobs.values()
        return self.engine.quick(job.lease.start, job.lease.stop, job.run.hidden.count)

    def _run_now(self) -> None:
        """The engine's loop is waiting, and need not be woken: that alone takes longer than all that is done here."""
        batch, moves = self._next()
        self._busy = True  # with moves, until the loop has made them
        if moves:
            self._planned = batch, moves
            self._wake.set()
            return
        try:
            if batch:
                self._run_here(batch)
        finally:
            self._busy = False
            self._release_finished()
        if self.scheduler:
            self._wake.set()  # pages are lacking, or this was not all of it

    def _next(self) -> tuple[list[Slice], list[Move]]:
        """What runs next, and what has to be moved before."""
        now = self._now()
        self._residency.begin(now)
        batch = self.scheduler.next_batch(self._fits, decoding=self._gather.decoding(now))
        moves = self._residency.take_moves()
        self._moving = {move.holding for move in moves}
        return batch, moves

    async def _step(self) -> None:
        batch, moves = self._planned or self._next()
        self._planned = None
        if not batch and not moves:
            await self._wait(self._residency.retry_s())
            return
        self._busy = True
        try:
            if moves:
                await self._make(moves)
                self._moving = set()
                batch = [piece for piece in batch if piece.job in self.jobs]
            if batch:
                await self._run_batch(batch)
        finally:
            self._busy = False
            self._release_finished()

    def _fits(self, number: int, offset: int, count: int) -> bool:
        job = self.jobs[number]
        if job.run.hidden.count > 1 and self._desk.clogged(job.lease):
            return False
        return self._residency.prepare(job.lease.holding, job.run.hidden.position + offset, count)

    async def _make(self, moves: Sequence[Move]) -> None:
        """Move pages. Whose pages are lost on the way has lost its KV."""
        for move in moves:
            try:
                if isinstance(move, Save):
                    move.saved.kv = await self.engine.save(move.pages)
                elif isinstance(move, Restore):
                    await self.engine.restore(move.saved.kv, move.pages)
                else:
                    await self.engine.copy((move.source,), (move.target,))
            except EngineFault as fault:
                losers = [lease for lease in self.book.leases.values() if lease.holding is move.holding]
                self._fault(losers, str(fault))

    async def _run_batch(self, batch: list[Slice]) -> None:
        if len(batch) == 1 and self._is_quick():
            self._run_here(batch)
            await asyncio.sleep(0)  # the loop was kept from all else
            return
        pieces, started = self._begin(batch)
        try:
            outputs = await self.engine.run(pieces)
        except EngineFault as fault:
            self._fault_batch(batch, fault)
        else:
            self._settle(batch, outputs, started)

    def _run_here(self, batch: list[Slice]) -> None:
        pieces, started = self._begin(batch)
        try:
            outputs = self.engine.run_now(pieces)
        except EngineFault as fault:
            self._fault_batch(batch, fault)
        else:
            self._settle(batch, outputs, started)

    def _begin(self, batch: list[Slice]) -> tuple[list[Piece], float]:
        """The engine's pieces of a batch, and the time."""
        started = self._now()
        for piece in batch:
            job = self.jobs[piece.job]
            job.queue_s = started - job.arrived if job.queue_s is None else job.queue_s
        return [cut(self.jobs[piece.job], piece) for piece in batch], started

    def _settle(self, batch: list[Slice], outputs: list[Output], started: float) -> None:
        """Answers first: others wait for them. Those of several sessions leave together, when this tick is over."""
        now = self._now()
        compute_s = now - started
        for piece, output in zip(batch, outputs, strict=True):
            job = self.jobs.get(piece.job)
            if job is None:
                continue  # its lease ended while the engine ran
            job.parts.append(output)
            job.compute_s += compute_s
            if not output.finite:
                self.refuse(job.lease, Reason.BAD_OUTPUT, "the span's output is not finite")
                continue
            self._residency.written(job.lease.holding)
            if piece.done:
                self._finish(piece.job, job, alone=len(batch) == 1)
        self.tally.add(sum(piece.count for piece in batch), len(batch), compute_s, now)
        self.scheduler.ran(batch, compute_s)
        if self._duty is not None:
            self._rest_s = self._duty.rest_s(compute_s)

    def _finish(self, number: int, job: Job, *, alone: bool) -> None:
        del self.jobs[number]
        payload = job.parts[0].payload if len(job.parts) == 1 else b"".join(part.payload for part in job.parts)
        times_s = (max(0.0, job.queue_s or 0.0), max(0.0, job.compute_s))
        answers = job.lease.finish(job.run.hidden, payload, job.run.keep_rows, times_s)
        self._desk.perform(job.lease, answers, at_once=alone)
        now, holding = self._now(), job.lease.holding
        holding.jobs -= 1
        holding.idle_since = now
        if job.run.hidden.count == 1:
            self._gather.answered(job.lease.session, job.lease.owner, now)

    def _fault_batch(self, batch: list[Slice], fault: EngineFault) -> None:
        self._fault([self.jobs[piece.job].lease for piece in batch if piece.job in self.jobs], str(fault))

    def _fault(self, leases: Sequence[Lease], text: str) -> None:
        """The device failed these leases; or all, if it is lost."""
        self.faulted.set()
        if self.engine.broken:
            self.book.draining = True
            self.broken.set()
            leases = list(self.book.leases.values())
        for lease in dict.fromkeys(leases):
            self.refuse(lease, Reason.FAULT, text)

    def _release_finished(self) -> None:
        for lease in self._finished:
            self.book.free(lease)
        self._finished.clear()
        if not self.book.leases:
            self.idle.set()
