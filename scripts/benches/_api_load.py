"""Load on `shoal api`, and the same work without HTTP: streaming clients, and what each token takes of a processor."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from shoal.client.generation import GenerationOptions
from shoal.client.serving import Ask

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shoal.client.serving import Serving

PROMPTS = (
    "class Stack:\n    def __init__(self):\n",
    "import os\n\ndef walk(path):\n",
    "def add(a, b):\n    return",
    "for i in range(10):\n    print(",
    "try:\n    value = int(text)\nexcept ",
    "class Point:\n    def __init__(self, x, y):\n",
)
TIMEOUT_S = 120.0


@dataclass
class Load:
    """What the clients saw. Seconds; `gaps_s`: between two events of an answer."""

    ttft_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    tokens: int = 0
    requests: int = 0
    errors: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    ended: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / (self.ended - self.began)


async def run_clients(count: int, more: Callable[[Load], bool], work: Callable[[Load, int], Awaitable[None]]) -> Load:
    """`count` clients, each of which starts a request after the other while `more` says so."""
    load = Load()

    async def one(client: int) -> None:
        number = client
        while more(load):
            load.requests += 1
            try:
                await work(load, number)
            except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
                load.errors.append(f"{type(error).__name__}: {error}")
            number += count

    async with asyncio.TaskGroup() as tasks:
        for client in range(count):
            tasks.create_task(one(client))
    load.ended = time.perf_counter()
    return load


def over_http(session: aiohttp.ClientSession, url: str, max_tokens: int) -> Callable[[Load, int], Awaitable[None]]:
    """A streamed completion, read to its end; what is not as it should be counts as an error."""

    async def work(load: Load, number: int) -> None:
        body = _body(number, max_tokens)
        began = last = time.perf_counter()
        usage: dict[str, Any] = {}
        done = False
        async with session.post(f"{url}/v1/completions", json=body) as response:
            if response.status != 200:
                raise ValueError(f"{response.status} {(await response.text())[:200]}")
            async for line in response.content:
                if not line.startswith(b"data: "):
                    continue
                if line == b"data: [DONE]\n":
                    done = True
                    continue
                now = time.perf_counter()
                event = json.loads(line[6:])
                if "error" in event:
                    raise ValueError(str(event["error"]))
                usage = event.get("usage") or usage
                if event["choices"]:
                    load.gaps_s.append(now - last) if last != began else load.ttft_s.append(now - began)
                    last = now
        if not done or not usage:
            raise ValueError("an answer ended too early")
        load.tokens += usage["completion_tokens"]

    return work


def over_python(serving: Serving, max_tokens: int) -> Callable[[Load, int], Awaitable[None]]:
    """The same through the Python client."""
    tokenizer: Any = serving.model.tokenizer

    async def work(load: Load, number: int) -> None:
        ids = tuple(tokenizer(PROMPTS[number % len(PROMPTS)])["input_ids"])
        ask = Ask(ids, GenerationOptions(max_tokens), ignore_eos=True)
        async with serving.stream(ask) as stream:
            async for _ in stream:
                load.tokens += 1
        load.ttft_s.append(stream.answers[0].ttft_s)

    return work


def _body(number: int, max_tokens: int) -> dict[str, Any]:
    return {
        "model": "demo",
        "prompt": PROMPTS[number % len(PROMPTS)],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
