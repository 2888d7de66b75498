"""Runs one seed's schedule in virtual time and judges it: exact, or a named error that is right, and nothing left over.

`scripts/bench sim --seed N` replays one and prints what happened.
"""

from __future__ import annotations

import asyncio
import hashlib
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shoal.peer.book import Limits
from shoal.peer.errors import NoRouteError
from shoal.peer.wire import Hello, Hidden, Ping, Pong

from tests.sim.clock import VirtualLoop, on_machine
from tests.sim.network import messages_in
from tests.sim.reach import Reach
from tests.sim.schedule import Schedule, schedule
from tests.sim.swarm import World, world
from tests.sim.trouble import Trouble
from tests.sim.work import Job, expected, perform
from tests.sim.worse import WorseTrouble

if TYPE_CHECKING:
    from shoal.client.remote import RemoteSession
    from shoal.client.swarm import Swarm

LEFT_OVER_S = 30.0  # by then nothing of a session may be left, whoever went away without a word
LONGEST_S = 600.0  # virtual seconds after which a run counts as stuck
EXACT, NAMED_ERROR, ENDED, FAILED = "exact", "named error", "ended", "failed"


@dataclass
class Outcome:
    """How a seed went. `jobs`: verdict of each; `faults`: why it failed, empty if it did not; `journal`: what happened;
    `digest`: of every byte's time and way."""

    seed: int
    jobs: list[str] = field(default_factory=list)
    deeds: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    journal: list[str] = field(default_factory=list)
    repairs: int = 0
    virtual_s: float = 0.0
    digest: str = ""


def run_trial(plan: Schedule | int, *, messages: bool = False) -> Outcome:
    """Run a schedule, or that of a seed, to its end. `messages`: the journal names every message, too."""
    plan = schedule(plan) if isinstance(plan, int) else plan
    outcome, loop = Outcome(plan.seed), VirtualLoop()
    loop.set_exception_handler(lambda _loop, context: outcome.faults.append(f"in a callback: {context}"))
    trial = _Trial(plan, outcome, loop, messages=messages)
    try:
        loop.run_until_complete(trial.run())
    except BaseException:
        outcome.faults.append("raised " + traceback.format_exc())
    finally:
        outcome.virtual_s = loop.now
        loop.close()
    return outcome


class _Trial:
    def __init__(self, plan: Schedule, outcome: Outcome, loop: VirtualLoop, *, messages: bool) -> None:
        self.plan, self.outcome, self.loop, self.messages = plan, outcome, loop, messages
        self.running: dict[str, list[asyncio.Task[None]]] = {}
        self.stopped: set[str] = set()
        self.it: World
        self.reach: Reach

    def say(self, text: str) -> None:
        self.outcome.journal.append(f"{self.loop.now:10.4f}  {text}")

    def fault(self, text: str) -> None:
        self.say("WRONG: " + text)
        self.outcome.faults.append(text)

    async def run(self) -> None:
        async with asyncio.timeout(LONGEST_S):
            async with world(self.plan.seed, ()) as self.it:
                await self._build()
                await self._work()
                await self._check_empty()
                self._note_trace()
            await asyncio.sleep(0)
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            self.fault(f"tasks are left: {others}")

    async def _build(self) -> None:
        plan = self.plan
        self.it.net.delay_s = plan.delay_s
        limits = Limits(
            kept_bytes_per_lease=plan.kept_bytes, swap_pages=plan.swap_pages, step_pages=plan.step_pages,
            kept_bytes=plan.kept_in_all,
        )  # fmt: skip
        for number, (start, stop) in enumerate(plan.spans):
            lie = 100.0 if number == plan.liar else 1.0
            await self.it.add_peer(f"p{number}", start, stop, limits, lie, n_pages=plan.pages, step_s=plan.step_s)
            self.say(f"p{number} serves {start}:{stop}" + (" and lies about its speed" if lie > 1 else ""))
        self.reach = Reach(self.it, plan.jobs, self.loop.now)
        if self.messages:
            self.it.net.listeners.append(self._say_frames)

    async def _work(self) -> None:
        kind = WorseTrouble if self.plan.wide else Trouble
        trouble = kind(self.it, self.plan, self.reach, self.say, self._stop_client)
        async with asyncio.TaskGroup() as tasks:
            for name in sorted({job.client for job in self.plan.jobs}):
                self.running[name] = [tasks.create_task(self._client(name), context=on_machine(name))]
            tasks.create_task(trouble.run())
        self.outcome.deeds = trouble.deeds

    async def _client(self, name: str) -> None:
        async with self.it.client(name) as swarm:
            self._overhear(swarm)
            async with asyncio.TaskGroup() as tasks:
                jobs = [(number, job) for number, job in enumerate(self.plan.jobs) if job.client == name]
                self.running[name] += [tasks.create_task(self._job(number, job, swarm)) for number, job in jobs]
            if name not in self.stopped:
                await self._check_leases(name)

    def _stop_client(self, name: str, vanish: bool) -> None:
        self.stopped.add(name)
        if vanish:
            self.it.net.kill(name)
        for task in self.running[name]:
            task.cancel()

    # -- one session ----------------------------------------------------------------------------------------------

    async def _job(self, number: int, job: Job, swarm: Swarm) -> None:
        await asyncio.sleep(job.begin_s)
        session: list[RemoteSession] = []
        steps = _Progress(self.loop.now)

        def note(count: int) -> None:
            self.say(f"job {number}: {count} numbers, position {session[-1].position}")
            self._judge_wait(number, job, steps.note(self.loop.now), self.loop.now)

        self.say(f"job {number} begins: {job}")
        try:
            got = await perform(job, swarm, note, session.append)
        except Exception as error:
            verdict = self._judge_error(number, job, error)
        except asyncio.CancelledError:
            self.outcome.jobs.append(ENDED)
            raise
        else:
            verdict = self._judge_numbers(number, got, expected(job))
        self.outcome.repairs += sum(one.stats.repairs for one in session)
        self.outcome.jobs.append(verdict)
        self._judge_wait(number, job, steps.last, self.loop.now)
        self.say(f"job {number} ends: {verdict}")

    def _judge_numbers(self, number: int, got: list[int], wanted: list[int]) -> str:
        if got == wanted:
            return EXACT
        at = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
        self.fault(f"job {number} gave {got[at : at + 4]} at {at}, the undisturbed run {wanted[at : at + 4]}")
        return FAILED

    def _judge_error(self, number: int, job: Job, error: Exception) -> str:
        self.say(f"job {number}: {type(error).__name__}: {error}")
        full = self.plan.tight or (self.plan.crowded and "free memory" in str(error))
        if isinstance(error, NoRouteError) and (full or self.reach.explains(job, error.missing, self.loop.now)):
            return NAMED_ERROR
        self.fault(f"job {number} ended in {type(error).__name__}: {error}, which the schedule does not explain")
        return FAILED

    def _judge_wait(self, number: int, job: Job, since: float, until: float) -> None:
        if not self.plan.tight and self.reach.waited_too_long(job, since, until):
            self.fault(f"job {number} got nowhere from {since:.3f} to {until:.3f}, though all blocks were in reach")

    # -- in the end -----------------------------------------------------------------------------------------------

    async def _check_leases(self, name: str) -> None:
        """A client that goes on must not hold what its sessions held."""
        end = self.loop.now + LEFT_OVER_S
        while any(name in peer.node.book.clients() for peer in self._peers()):
            if self.loop.now > end:
                self.fault(f"leases of {name} are left, and it is still there")
                return
            await asyncio.sleep(1.0)
            if self.it.net.hung:  # who stands still gives nothing back meanwhile
                end = max(end, self.loop.now + LEFT_OVER_S)

    async def _check_empty(self) -> None:
        end = self.loop.now + LEFT_OVER_S
        while (left := self._left()) and self.loop.now < end:
            await asyncio.sleep(1.0)
        if left:
            self.fault("left in the end: " + "; ".join(left))

    def _left(self) -> list[str]:
        left = []
        for peer in self._peers():
            node, book = peer.node, peer.node.book
            book.pages.check()
            cached = book.residency.prefix.idle_pages
            counts = {
                "leases": len(book.leases), "jobs": len(node.steps.jobs), "waiting jobs": len(node.steps.scheduler),
                "pages": book.pages.n_pages - book.pages.free - cached,
                "committed pages": book.residency.committed, "kept bytes": book.kept.used_bytes,
            }  # fmt: skip
            left += [f"{peer.peer_id}: {count} {what}" for what, count in counts.items() if count]
        return left

    def _peers(self):
        return [*self.it.peers.values(), *self.it.draining.values()]

    def _note_trace(self) -> None:
        digest = hashlib.blake2b(digest_size=16)
        for item in self.it.net.trace:
            digest.update(repr(item).encode())
        self.outcome.digest = digest.hexdigest()

    # -- listening ------------------------------------------------------------------------------------------------

    def _overhear(self, swarm: Swarm) -> None:
        """Put the client's plans and complaints into the journal."""
        plan, blame, me = swarm.plan, swarm.blame, swarm._place.transport.peer_id

        def planned(request, max_tokens):
            found = plan(request, max_tokens)
            hops = getattr(found, "hops", None)
            route = " ".join(f"{hop.peer_id}[{hop.start}:{hop.stop}]" for hop in hops) if hops else f"{found}"
            self.say(f"{me} plans {request.start}:{request.stop} without {sorted(request.avoid)}: {route}")
            return found

        def blamed(error):
            self.say(f"{me} blames {error.peer_id}: {error}")
            blame(error)

        swarm.plan, swarm.blame = planned, blamed

    def _say_frames(self, source: str, target: str, data: bytes) -> None:
        for message in messages_in(data):
            if not isinstance(message, (Hello, Ping, Pong)):
                self.say(f"    {source}->{target} {_brief(message)}")


class _Progress:
    """When a job last got on."""

    def __init__(self, now: float) -> None:
        self.last = now

    def note(self, now: float) -> float:
        before, self.last = self.last, now
        return before


def _brief(message: object) -> str:
    """One line of a message: no payload, sessions by their first bytes."""
    if message is None:
        return "a torn frame"
    names = ("epoch", "step", "position", "count", "want", "replay", "rows", "start", "stop", "max_tokens", "next_step",
             "prev", "next", "final", "forward_replay", "replay_to", "reason", "text", "cached")  # fmt: skip
    shown = " ".join(f"{name}={getattr(message, name)}" for name in names if hasattr(message, name))
    kind = "Replay" if isinstance(message, Hidden) and message.replay else type(message).__name__
    return f"{kind} {getattr(message, 'session', b'').hex()[:4]} {shown}"


def tally(outcomes: list[Outcome]) -> dict[str, int]:
    """Counts over many seeds."""
    verdicts = Counter(verdict for outcome in outcomes for verdict in outcome.jobs)
    return {
        "schedules": len(outcomes), "failed": sum(bool(outcome.faults) for outcome in outcomes),
        "exact": verdicts[EXACT], "named_errors": verdicts[NAMED_ERROR], "ended": verdicts[ENDED],
        "deeds": sum(len(outcome.deeds) for outcome in outcomes),
        "repairs": sum(outcome.repairs for outcome in outcomes),
    }  # fmt: skip
