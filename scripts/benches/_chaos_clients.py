"""Clients that generate without pause, check every token, and note when it came. They know nothing of the faults."""

from __future__ import annotations

import asyncio
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from shoal.client.generation import GenerationOptions, generate, prompt_of
from shoal.client.options import SessionOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.client.local import ClientModel
    from shoal.client.remote import RemoteSession
    from shoal.client.swarm import Swarm

NEW_TOKENS = 96
RUN_S = 180.0  # a generation that takes longer has failed
WAIT_S = 90.0  # for holders of a lost block to come back
PROMPTS = (
    'class PhoneBook:\n    """Names and their numbers."""\n\n    def __init__(self):\n',
    "def main():\n    parser = argparse.ArgumentParser(description=__doc__)\n" * 6,
    "import",
    'def read(path):\n    """The lines of a file."""\n    with open(path) as file:\n' * 3,
)


@dataclass(frozen=True)
class Task:
    """A prompt and what must come of it."""

    prompt: list[int]
    expected: list[int]


@dataclass
class Client:
    """One user: `times` of all tokens so far, in seconds of `time.perf_counter`, and the session at work now."""

    number: int
    times: list[float] = field(default_factory=list)
    session: RemoteSession | None = None
    runs: int = 0
    wrong: int = 0
    repairs: int = 0
    failures: list[str] = field(default_factory=list)

    async def work(self, swarm: Swarm, model: ClientModel, tasks: Sequence[Task], over: asyncio.Event) -> None:
        """One generation after another until `over`; the one under way then is finished."""
        self.times.append(time.perf_counter())
        while not over.is_set():
            task = tasks[(self.number + self.runs) % len(tasks)]
            self.runs += 1
            try:
                async with asyncio.timeout(RUN_S):
                    await self._run(swarm, model, task)
            except Exception as error:  # noqa: BLE001  whatever it is, the user has seen it
                self.failures.append(f"client {self.number}, run {self.runs}: {type(error).__name__}: {error}")
                traceback.print_exception(error)
                self.times.append(time.perf_counter())

    async def _run(self, swarm: Swarm, model: ClientModel, task: Task) -> None:
        count = len(task.expected)
        options = SessionOptions(
            max_tokens=len(task.prompt) + count, wait_s=WAIT_S, prompt=prompt_of(model.ends.spec, task.prompt)
        )
        tokens = []
        async with swarm.session(options) as self.session:
            async for piece in generate(self.session, model.ends, None, task.prompt, GenerationOptions(count)):
                tokens.append(piece.token_id)
                self.times.append(piece.at)
            self.repairs += self.session.stats.repairs
        self.wrong += sum(a != b for a, b in zip(tokens, task.expected, strict=True))

    def uses(self, peer_id: str) -> bool:
        """Whether the session at work now goes through a peer."""
        return self.session is not None and any(hop.peer_id == peer_id for hop in self.session.route)

    def stall_s(self, since: float, until: float) -> float:
        """The longest wait for a token that touches the time between two moments."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return max((after - before for before, after in pairs if after > since and before < until), default=0.0)


def undisturbed(model: ClientModel, new_tokens: int) -> list[Task]:
    """What the whole model in one process says, in fp32: all prompts as one batch, so that it takes a few seconds."""
    from transformers import AutoModelForCausalLM

    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer")
    whole = AutoModelForCausalLM.from_pretrained(model.checkpoint.path, dtype=torch.float32)
    prompts = [list(model.tokenizer(text)["input_ids"]) for text in PROMPTS]
    longest = max(map(len, prompts))
    out = whole.generate(
        torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        min_new_tokens=new_tokens, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return [Task(prompt, row[longest:].tolist()) for prompt, row in zip(prompts, out, strict=True)]
