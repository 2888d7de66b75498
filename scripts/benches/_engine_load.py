"""Many sessions on one span in the engine's benchmark: the peer's scheduler and pages, driven without a network.

The client's part is small: the head and the embedding are one random table of 1,024 rows. Tokens come back to the host
after every step, as a peer's answers do.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from _engine_models import Bench, Figures, pages_of, states, tell
from _engine_time import synchronize
from shoal.blocks.kv import PAGE_TOKENS
from shoal.blocks.span import Row, Span
from shoal.peer.engine import STEP_TOKENS_CUDA
from shoal.peer.pages import PageAllocator
from shoal.peer.scheduler import Budget, Scheduler, Slice

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TABLE = 1024
REQUESTS, PROMPT, NEW = 64, 512, 128
WARM, RUNS = 2, 3  # the first runs choose kernels and capture graphs; the figure is the median of the others
CLIENTS = 8
MOST_NEW = 4096  # tokens that the lease of an endless session asks for
NUMBERS = 128  # sessions' numbers are below


@dataclass(slots=True)
class Request:
    """One session: a prompt `[P, hidden]` and the tokens that it shall generate after it. `owner`: its client, if it is
    none of those among whom sessions are spread."""

    number: int
    prompt: torch.Tensor
    new: int
    owner: str = ""
    position: int = 0
    made: int = 0
    pages: tuple[int, ...] = ()

    @property
    def session(self) -> bytes:
        return self.number.to_bytes(16, "big")

    @property
    def client(self) -> str:
        return self.owner or f"client {self.number % CLIENTS}"

    def room_after(self, taken: int) -> int:
        """Pages that it will want one day, beyond those it has and `taken` more; as a lease's max_tokens says."""
        most = pages_of(len(self.prompt) + min(self.new, MOST_NEW))
        return max(0, most - len(self.pages) - taken)


class _Launched:
    """A step that the device was given: its tokens are on their way to the host."""

    def __init__(self, slices: list[Slice], tokens: torch.Tensor) -> None:
        self.slices = slices
        self.tokens = torch.empty_like(tokens, device="cpu", pin_memory=True)
        self.tokens.copy_(tokens, non_blocking=True)
        self.ended = torch.cuda.Event(enable_timing=True)
        self.ended.record()

    def wait(self, following: _Launched) -> tuple[list[Slice], float]:
        """The slices of the step after this one, and its seconds from this one's end to its own."""
        following.ended.synchronize()
        return following.slices, self.ended.elapsed_time(following.ended) / 1e3


class Load:
    """Requests on a span, step by step, as a peer would run them."""

    def __init__(self, span: Span, table: torch.Tensor, *, ahead: bool = False) -> None:
        self.span, self.table = span, table
        self._ahead: deque[_Launched] | None = deque() if ahead and span.device.type == "cuda" else None
        self.allocator = PageAllocator(span.kv.n_pages)
        self.scheduler = Scheduler(Budget(STEP_TOKENS_CUDA))  # as a peer on a GPU has it
        self.steps_s: list[float] = []
        self.unused: list[float] = []  # of the slots set aside after each step, the part that holds no token
        self._jobs: dict[int, Request] = {}
        self.running: dict[int, Request] = {}
        self._next = torch.zeros(NUMBERS, table.shape[1], dtype=table.dtype, device=table.device)

    def add(self, request: Request) -> None:
        """Its prompt waits from now on."""
        self.running[request.number] = request
        self._queue(request, len(request.prompt))

    def drop(self, request: Request) -> None:
        """Forget one that still waits."""
        for job in self.scheduler.drop(request.session):
            del self._jobs[job]
        self.allocator.release(request.pages)
        del self.running[request.number]

    def step(self) -> list[Request]:
        """One engine step; returns the requests that got a token in it.

        `ahead`: the tokens of a step come to the host while the next one runs, since what runs next does not depend on
        them. The scheduler then hears how long a step took one step later.
        """
        started = time.perf_counter()
        slices = self.scheduler.next_batch()
        pieces = [(self._jobs[piece.job], piece) for piece in slices]
        rows = [self._row(request, piece) for request, piece in pieces]
        out = self.span.forward(self._inputs(pieces), rows)
        told = [request for request, piece in pieces if piece.done]
        tokens = self._sample(out, pieces, told)
        if self._ahead is None:
            tokens.cpu()  # a peer, too, waits for every step
            self._took(slices, time.perf_counter() - started)
        else:
            self._ahead.append(_Launched(slices, tokens))
        for request, piece in pieces:
            self._advance(request, piece)
        self._count_unused()
        if self._ahead is not None and len(self._ahead) > 2:
            self._took(*self._ahead.popleft().wait(self._ahead[0]))
        return told

    def _took(self, slices: list[Slice], seconds: float) -> None:
        self.steps_s.append(seconds)
        self.scheduler.ran(slices, seconds)

    def run_until(self, done: Callable[[], bool]) -> None:
        """Steps until `done()`."""
        while not done():
            self.step()

    def _queue(self, request: Request, count: int) -> None:
        self._jobs[self.scheduler.add(request.session, count, request.client)] = request

    def _row(self, request: Request, piece: Slice) -> Row:
        lacking = pages_of(request.position + piece.count) - len(request.pages)
        if lacking > 0:
            last = request.pages[-1] if request.pages else None
            taken = self.allocator.allocate(lacking, last, request.room_after(lacking))
            if taken is None:
                raise RuntimeError("the benchmark's pages are too few")
            request.pages += taken  # a tuple, as leases hold them
        length = len(request.prompt) if piece.count > 1 or not request.made else 0
        return Row(request.pages, request.position, piece.count, length)

    def _inputs(self, pieces: Sequence[tuple[Request, Slice]]) -> torch.Tensor:
        """Hidden states of a step: decoding sessions are looked up together, prompts are cut out."""
        parts: list[torch.Tensor] = []
        waiting: list[int] = []
        for request, piece in pieces:
            if request.made:
                waiting.append(request.number)
                continue
            parts += self._lookup(waiting)
            waiting = []
            parts.append(request.prompt[piece.offset : piece.offset + piece.count])
        parts += self._lookup(waiting)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _lookup(self, numbers: Sequence[int]) -> list[torch.Tensor]:
        return [self._next.index_select(0, self._index(numbers))] if numbers else []

    def _index(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long).to(self.table.device, non_blocking=True)

    def _sample(
        self, out: torch.Tensor, pieces: Sequence[tuple[Request, Slice]], told: Sequence[Request]
    ) -> torch.Tensor:
        """Greedy tokens of the finished pieces' last rows, on the device, and their next inputs."""
        ends, total = [], 0
        for _, piece in pieces:
            total += piece.count
            if piece.done:
                ends.append(total - 1)
        if not ends:
            return out[-1:, :1]
        tokens = out.index_select(0, self._index(ends))[:, :TABLE].argmax(-1)
        self._next[self._index([request.number for request in told])] = self.table[tokens % len(self.table)]
        return tokens

    def _advance(self, request: Request, piece: Slice) -> None:
        request.position += piece.count
        if not piece.done:
            return
        del self._jobs[piece.job]
        request.made += 1
        if request.made < request.new:
            self._queue(request, 1)
        else:
            self.allocator.release(request.pages)
            del self.running[request.number]

    def _count_unused(self) -> None:
        slots = sum(len(request.pages) for request in self.running.values()) * PAGE_TOKENS
        used = sum(request.position for request in self.running.values())
        if slots:
            self.unused.append((slots - used) / slots)


def table_of(span: Span) -> torch.Tensor:
    """The random embedding `[1024, hidden]`."""
    return states(TABLE, span, seed=3)


def requests(bench: Bench) -> Figures:
    """Generated tokens a second of 64 requests with 512 prompt and 128 new tokens, all there at the start."""
    count, prompt, new = bench.size(REQUESTS, 6), bench.size(PROMPT, 40), bench.size(NEW, 6)
    span = bench.span(bench.size(8, 2), count * (prompt + new + 32))
    table = table_of(span)
    runs: list[float] = []
    for number in range(WARM + RUNS):
        tell(f"  {count} requests, run {number + 1} ...")
        load = Load(span, table, ahead=True)
        for index in range(count):
            load.add(Request(index, states(prompt, span, seed=10 + index), new))
        synchronize(bench.device)
        started = time.perf_counter()
        load.run_until(lambda load=load: not load.running)
        synchronize(bench.device)
        runs.append(time.perf_counter() - started)
        tell(f"    {runs[-1]:.2f} s, {len(load.steps_s)} steps, the longest {max(load.steps_s) * 1e3:.0f} ms")
    seconds = statistics.median(runs[WARM:])
    return {
        "span_tokens_per_s": count * new / seconds,
        "span_total_tokens_per_s": count * (prompt + new) / seconds,
        "span_requests_s": seconds,
        "span_steps": float(len(load.steps_s)),
        "span_tokens_per_step": count * (prompt + new - 1) / len(load.steps_s),
        "kv_waste_percent": statistics.mean(load.unused) * 100,
        "kv_waste_worst_percent": max(load.unused) * 100,
    }
