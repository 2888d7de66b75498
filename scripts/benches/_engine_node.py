"""Through the serving node in the engine's benchmark: prefix hits, and what sessions get out of one peer process."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from dataclasses import dataclass

import torch
from _engine_link import Client, served
from _engine_models import Bench, Figures, release, states, tell
from _loop import run
from shoal.peer.wire import PREFIX_TOKENS

COMMON, OWN = 2048, 16
PAIRS = 11
CHUNK = 512  # tokens of a prompt in one message, as clients send them
REQUESTS, PROMPT, NEW = 64, 512, 128


def prefix(bench: Bench) -> Figures:
    """The prefill of a session with 2,048 tokens in common with one before, and 16 of its own, against that of the
    first: through the node, so with leases, messages and a peer's prefix cache. The time is what the peer's receipts
    say, waiting and computing; beside it the time from asking for a lease to the first answer, messages included."""
    found = _prefix(bench, "bf16")
    release(bench.device)
    return found | {f"{name}_nf4": value for name, value in _prefix(bench, "nf4").items()}


def _prefix(bench: Bench, kind: str) -> Figures:
    common, own = bench.size(COMMON, 128), bench.size(OWN, 16)
    span = bench.span(bench.size(8, 2), (PAIRS + 1) * (common + own + 32), kind)
    shared = states(common, span, seed=5).cpu()
    # Made beforehand: torch's CPU threads stay busy for a while after each of their works, in the peer's way.
    prompts = [torch.cat([shared, states(own, span, seed=100 + number).cpu()]) for number in range(PAIRS)]

    async def go() -> tuple[list[_First], list[_First]]:
        first, second = [], []
        async with served(span) as (_node, client):
            for hidden in prompts:
                keys = tuple(os.urandom(16) for _ in range(common // PREFIX_TOKENS))
                for results in (first, second):
                    results.append(await _first_token(client, hidden, keys))
        return first[2:], second[2:]  # the first pairs choose kernels and capture graphs

    first, second = run(go())
    if any(one.cached for one in first):
        raise RuntimeError("a new prefix was found in the cache")
    first_s, second_s = (statistics.median(one.peer_s for one in ones) for ones in (first, second))
    first_all_s, second_all_s = (statistics.median(one.all_s for one in ones) for ones in (first, second))
    return {
        "prefix_first_ms": first_s * 1e3,
        "prefix_second_ms": second_s * 1e3,
        "prefix_cached_tokens": float(min(one.cached for one in second)),
        "prefix_hit_ratio": second_s / first_s,
        "prefix_hit_ratio_with_messages": second_all_s / first_all_s,
    }


@dataclass(frozen=True)
class _First:
    """Seconds up to a prompt's answer: by the peer's receipts, and in all; and how many tokens were cached."""

    peer_s: float
    all_s: float
    cached: int


async def _first_token(client: Client, hidden: torch.Tensor, keys: tuple[bytes, ...]) -> _First:
    started = time.perf_counter()
    session, cached = await client.open(len(hidden) + 16, keys)
    steps = await _prompt(client, session, hidden, cached)
    all_s = time.perf_counter() - started
    peer_s = await client.spent_s(session, steps)
    client.end(session)
    await asyncio.sleep(0.01)
    return _First(peer_s, all_s, cached)


async def _prompt(client: Client, session: bytes, hidden: torch.Tensor, start: int = 0) -> int:
    """A prompt in chunks, from `start` on; returns the number of steps."""
    steps = range(start, len(hidden), CHUNK)
    for step, position in enumerate(steps):
        await client.step(session, step, position, hidden[position : position + CHUNK])
    return len(steps)


def node(bench: Bench) -> Figures:
    """Generated tokens a second of 64 requests, 512 prompt and 128 new tokens, through the node. Its clients run in
    the same process and thread, so this counts their Python as well."""
    count, prompt, new = bench.size(REQUESTS, 4), bench.size(PROMPT, 40), bench.size(NEW, 5)
    span = bench.span(bench.size(8, 2), count * (prompt + new + 32))
    prompts = [states(prompt, span, seed=20 + index).cpu() for index in range(count)]

    async def go() -> float:
        seconds = 0.0
        async with served(span) as (_node, client):
            for number in range(2):
                tell(f"  {count} requests through the node, run {number + 1} ...")
                started = time.perf_counter()
                async with asyncio.TaskGroup() as tasks:
                    for hidden in prompts:
                        tasks.create_task(_session(client, hidden, new))
                seconds = time.perf_counter() - started
        return seconds

    seconds = run(go())
    return {"node_tokens_per_s": count * new / seconds, "node_requests_s": seconds}


async def _session(client: Client, hidden: torch.Tensor, new: int) -> None:
    """A prompt, then tokens: each answer's row is the next input."""
    session, _ = await client.open(len(hidden) + new)
    step = await _prompt(client, session, hidden[:-1])
    row = hidden[-1:]
    for made in range(new):
        answer = await client.step(session, step + made, len(hidden) - 1 + made, row)
        row = _bounded(torch.frombuffer(bytearray(answer), dtype=hidden.dtype).view(1, -1))
    client.end(session)


def _bounded(row: torch.Tensor) -> torch.Tensor:
    """A state as large as an embedding: without it 128 passes through the blocks would grow past all numbers."""
    return row / row.abs().amax().clamp(min=1)
