"""Which waiting work runs in the next engine step. Integers only: no tensors, no clock, no leases.

Iteration-level batching (Orca, OSDI 2022) with chunked prefill (Sarathi-Serve, OSDI 2024): every waiting decode token
goes first, then prefill chunks in order of arrival fill what is left of the token budget.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one engine step; `prefill_tokens` are kept for prefill even when decodes could fill the step."""

    tokens: int = 512
    prefill_tokens: int = 64


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
    left: int
    offset: int = 0


class Scheduler:
    """Jobs of a session run in order, one slice of one job at a time; sessions share each step."""

    def __init__(self, budget: Budget = Budget()) -> None:
        self.budget = budget
        self._sessions: dict[bytes, deque[_Job]] = {}  # insertion order is arrival order of the head jobs
        self._number = 0

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._sessions.values())

    def tokens(self) -> int:
        """Tokens that wait."""
        return sum(job.left for queue in self._sessions.values() for job in queue)

    def only_decodes(self) -> bool:
        """Whether something waits and every head is a single token."""
        return bool(self._sessions) and all(queue[0].left == 1 for queue in self._sessions.values())

    def add(self, session: bytes, count: int) -> int:
        """Queue `count` tokens of a session; returns the job's number."""
        self._number += 1
        self._sessions.setdefault(session, deque()).append(_Job(self._number, session, count))
        return self._number

    def drop(self, session: bytes) -> list[int]:
        """Forget a session's waiting jobs; returns their numbers."""
        return [job.number for job in self._sessions.pop(session, ())]

    def next_batch(self) -> list[Slice]:
        """The slices of the next engine step; empty if nothing waits."""
        heads = [queue[0] for queue in self._sessions.values()]
        prefills = [job for job in heads if job.left > 1]
        room = self.budget.tokens - (self.budget.prefill_tokens if prefills else 0)
        decodes = [job for job in heads if job.left == 1][: max(0, room)]
        batch = [self._take(job, 1) for job in decodes]
        room = self.budget.tokens - len(decodes)
        for job in prefills:
            if room <= 0:
                break
            batch.append(self._take(job, min(job.left, room)))
            room -= batch[-1].count
        return batch

    def _take(self, job: _Job, count: int) -> Slice:
        piece = Slice(job.number, job.offset, count, done=count == job.left)
        job.offset, job.left = job.offset + count, job.left - count
        if piece.done:
            self._next_job(job.session)
        return piece

    def _next_job(self, session: bytes) -> None:
        """The head is done: the session's next job queues behind the other sessions' heads."""
        queue = self._sessions.pop(session)
        queue.popleft()
        if queue:
            self._sessions[session] = queue
