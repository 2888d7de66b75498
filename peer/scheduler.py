"""Which waiting work runs in the next engine step. Integers only: no tensors, no clock, no leases.

Iteration-level batching (Orca, OSDI 2022) with chunked prefill (Sarathi-Serve, OSDI 2024): every waiting decode token
goes first; prompts share what may be added to the step (`costs`). Whose client was served least comes first, counted in
tokens (as in VTC, OSDI 2024). Background work takes what is left, and its turn now and then.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias

from shoal.peer.costs import StepCosts

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    Fits: TypeAlias = Callable[[int, int, int], bool]

RUSH = 4  # times what one prompt may add to a step is the most that they add together, where others than they decode
OWN_RUSH = 8  # the same where only those decode whose prompts wait
BACKGROUND_TURN = 8  # every so many steps background work counts like any other
CREDIT_STEPS = 4  # full steps by which a client may lag behind the one that was served most
MAX_CLIENTS = 1024  # that are remembered without work


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one engine step. `chunk`: prompt tokens for which there is always room, and the first that are tried.
    `stall`: how many times longer than its decode tokens alone a step may take for prompts' sake. `prefill_token_s`:
    what a token of a long prompt takes, if that was measured.

    Errors: `ValueError` for a step that could not hold a decode token and a chunk.
    """

    tokens: int = 512
    rows: int = 256
    chunk: int = 16
    stall: float = 1.5
    prefill_token_s: float | None = None

    def __post_init__(self) -> None:
        if self.tokens < 2 or self.rows < 2 or self.chunk < 1:
            raise ValueError("an engine step needs room for two rows and two tokens, and a chunk at least one token")

    @property
    def least(self) -> int:
        """Prompt tokens for which there is room in every step."""
        return min(self.chunk, self.tokens // 2)


@dataclass(frozen=True, slots=True)
class Slice:
    """Tokens `[offset, offset + count)` of a job; `done` if they are its last."""

    job: int
    offset: int
    count: int
    done: bool


@dataclass(slots=True)
class _Job:
    number: int
    session: bytes
    client: str
    priority: int
    left: int
    offset: int = 0


class Scheduler:
    """Jobs of a session run in order, one slice of one job at a time; sessions share each step."""

    def __init__(self, budget: Budget = Budget()) -> None:
        self.budget = budget
        self.costs = StepCosts(budget.stall, budget.least, budget.tokens, budget.prefill_token_s)
        self._sessions: dict[bytes, deque[_Job]] = {}  # insertion order is arrival order of the head jobs
        self._served: dict[str, int] = {}  # client -> tokens, compared with one another only
        self._most_served = 0
        self._number = 0
        self._steps = 0

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._sessions.values())

    def __bool__(self) -> bool:
        return bool(self._sessions)

    def tokens(self) -> int:
        """Tokens that wait."""
        return sum(job.left for queue in self._sessions.values() for job in queue)

    def only_decodes(self) -> bool:
        """Whether something waits and every head is a single token."""
        return bool(self._sessions) and all(queue[0].left == 1 for queue in self._sessions.values())

    def add(self, session: bytes, count: int, client: str = "", priority: int = 0) -> int:
        """Queue `count` tokens of a client's session; returns the job's number. `priority` 1: background."""
        self._number += 1
        self._sessions.setdefault(session, deque()).append(_Job(self._number, session, client, priority, count))
        served = self._served.get(client)
        if served is None:
            self._note_client(client)
        elif served < (floor := self._most_served - CREDIT_STEPS * self.budget.tokens):
            self._served[client] = floor
        return self._number

    def drop(self, session: bytes) -> list[int]:
        """Forget a session's waiting jobs; returns their numbers."""
        return [job.number for job in self._sessions.pop(session, ())]

    def ran(self, batch: Sequence[Slice], seconds: float) -> None:
        """A batch has taken so long: later ones are cut accordingly."""
        tokens = sum(piece.count for piece in batch)
        decodes = len(batch) if tokens == len(batch) else sum(piece.count == 1 for piece in batch)
        if batch:
            self.costs.ran(decodes, tokens - decodes, seconds)

    def next_batch(self, fits: Fits | None = None, *, decoding: Collection[str] = ()) -> list[Slice]:
        """The slices of the next engine step; empty if nothing waits, or nothing fits.

        `fits(job, offset, count)` is asked before a slice is taken, and said yes it is taken. `decoding`: clients that
        are in the midst of decoding; those that do not wait now shall not find a long step under way.
        """
        self._steps += 1
        heads = [queue[0] for queue in self._sessions.values()]
        decodes = [job for job in heads if job.left == 1]
        prefills = [job for job in heads if job.left > 1] if len(decodes) < len(heads) else []
        most = min(self.budget.rows, self.budget.tokens)
        if prefills:
            most = min(self.budget.rows - 1, self.budget.tokens - self.budget.least)
        chosen = decodes if len(decodes) <= most else self._fairest(decodes, most)
        batch = [self._take(job, 1) for job in chosen if fits is None or fits(job.number, job.offset, 1)]
        if prefills:
            normal = any(not job.priority for job in decodes)
            decoders = {*decoding, *(job.client for job in decodes)}
            batch += self._prefill(self._in_order(prefills, beside_normal=normal), len(batch), fits, decoders)
        return batch

    def _prefill(self, jobs: Sequence[_Job], decodes: int, fits: Fits | None, decoders: set[str]) -> Iterator[Slice]:
        """Chunks of prompts beside so many decode tokens, of sessions of `decoders`."""
        room, rows = self.budget.tokens - decodes, self.budget.rows - decodes
        if jobs and decoders:
            chunk = self.costs.chunk_beside(decodes) if decodes else self.costs.chunk_between()
            room = min(room, chunk * _rush(jobs, max(decodes, 1), decoders))
        for job in jobs:
            if room <= 0 or rows <= 0:
                return
            count = min(job.left, room)
            if fits is None or fits(job.number, job.offset, count):
                yield self._take(job, count)
                room, rows = room - count, rows - 1

    def _in_order(self, jobs: list[_Job], *, beside_normal: bool) -> list[_Job]:
        """Prompts by what their clients were served; background ones last, and not beside others' decode tokens,
        unless it is their turn."""
        by_client = sorted(jobs, key=lambda job: self._served[job.client])
        if not self._steps % BACKGROUND_TURN:
            return by_client
        if beside_normal:
            return [job for job in by_client if not job.priority]
        return sorted(by_client, key=attrgetter("priority"))

    def _fairest(self, jobs: list[_Job], count: int) -> list[_Job]:
        """`count` of the decode tokens: one at a time from the client that was served least."""
        turn = not self._steps % BACKGROUND_TURN
        queues: dict[tuple[int, str], deque[_Job]] = {}
        for job in jobs:
            queues.setdefault((0 if turn else job.priority, job.client), deque()).append(job)
        order = [(priority, self._served[client], client) for priority, client in queues]
        heapify(order)
        chosen: list[_Job] = []
        while len(chosen) < count:
            priority, served, client = order[0]
            queue = queues[priority, client]
            chosen.append(queue.popleft())
            if queue:
                heapreplace(order, (priority, served + 1, client))
            else:
                heappop(order)
        return chosen

    def _take(self, job: _Job, count: int) -> Slice:
        piece = Slice(job.number, job.offset, count, done=count == job.left)
        job.offset, job.left = job.offset + count, job.left - count
        served = self._served[job.client] = self._served[job.client] + count
        self._most_served = max(self._most_served, served)
        if piece.done:
            self._next_job(job.session)
        return piece

    def _next_job(self, session: bytes) -> None:
        """The head is done: the session's next job queues behind the other sessions' heads."""
        queue = self._sessions.pop(session)
        queue.popleft()
        if queue:
            self._sessions[session] = queue

    def _note_client(self, client: str) -> None:
        """A new client begins where the least served one of those with work stands."""
        working = {queue[0].client for queue in self._sessions.values()}
        if len(self._served) >= MAX_CLIENTS:
            self._served = {name: served for name, served in self._served.items() if name in working}
        floor = self._most_served - CREDIT_STEPS * self.budget.tokens
        known = [self._served[name] for name in working if name in self._served]
        self._served[client] = max(floor, min(known, default=self._most_served))


def _rush(jobs: Sequence[_Job], decodes: int, decoders: set[str]) -> int:
    """How many times what one prompt may add to a step these may add together.

    Prompts wait for one another as well: once there are more pairs of them than decoding sessions, a longer step costs
    these less than it saves those. That holds where those who decode are those who wait, within bounds: one client may
    speak for many users. Others bear some of it for the sake of several clients, and nothing for one that has sent much
    at once.
    """
    clients = {job.client for job in jobs}
    waiting, most = (len(jobs), OWN_RUSH) if decoders <= clients else (len(clients), RUSH)
    return max(1, min(most, waiting * (waiting - 1) // (2 * decodes)))
