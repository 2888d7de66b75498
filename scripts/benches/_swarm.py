"""Swarms of real processes for benchmarks: random Llama checkpoints, a bootstrap node and peers on 127.0.0.1."""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from shoal.blocks.span import Row, SpanOptions, load_span
from shoal.client.cli.children import Children
from shoal.dht.invite import Invite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from shoal.client.local import ClientModel
    from shoal.client.remote import RemoteSession

PROMPT = 8
PEER = ("peer", "--device", "cpu", "--json")  # their figures are a processor's, also on a machine with a GPU


@dataclass(frozen=True)
class Shape:
    """A random Llama: `blocks` of `hidden`, `intermediate` and `heads` (as many KV heads), a small vocabulary."""

    blocks: int
    hidden: int
    intermediate: int
    heads: int
    vocab: int = 1024

    def save(self, folder: Path) -> Path:
        """Write a checkpoint of this shape in fp32."""
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=self.hidden, intermediate_size=self.intermediate, num_hidden_layers=self.blocks,
            num_attention_heads=self.heads, num_key_value_heads=self.heads, vocab_size=self.vocab,
            max_position_embeddings=4096,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
        return folder


def tell(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


@asynccontextmanager
async def swarm_of(model: Path, spans: Sequence[str], kv_tokens: int = 16384) -> AsyncIterator[Invite]:
    """One bootstrap node and a peer for each span, one thread each; all online, and gone at the end."""
    with tempfile.TemporaryDirectory() as folder:
        async with Children({"OMP_NUM_THREADS": "1", "HOME": folder}) as children:
            node = await children.start("bootstrap", ["bootstrap", "--json", "--model", model.name])
            invite = str((await node.event("invite"))["invite"])
            peers = [
                await children.start(
                    f"peer {span}",
                    [*PEER, "--model", str(model), "--join", invite, "--blocks", span, "--dtype", "float32",
                     "--kv-tokens", str(kv_tokens)],
                )
                for span in spans
            ]  # fmt: skip
            for peer in peers:
                await peer.event("event", "online")
            yield Invite.parse(invite)


async def decode(session: RemoteSession, model: ClientModel, steps: int) -> list[float]:
    """Greedy decode steps after a short prompt; milliseconds of each."""
    times, ids = [], list(range(1, PROMPT + 1))
    for _ in range(steps + 1):
        started = time.perf_counter()
        positions = torch.arange(session.position, session.position + len(ids))
        hidden = await session.step(model.ends.embed(torch.tensor(ids), positions))
        ids = [int(model.ends.logits(hidden)[-1].argmax())]
        times.append((time.perf_counter() - started) * 1e3)
    return times[1:]


class LocalModel:
    """The whole model in this process, one thread: through transformers, and through our own span and ends."""

    def __init__(self, folder: Path, ends: ClientModel, blocks: int) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._ends = ends.ends
        pages = 256
        self._span = load_span(ends.checkpoint, range(blocks), SpanOptions(kv_pages=pages, dtype=torch.float32))
        self._pages = tuple(range(pages))

    def transformers_ms(self, steps: int) -> list[float]:
        """Milliseconds of each decode step through transformers with its DynamicCache."""
        from transformers import DynamicCache

        cache, ids, times = DynamicCache(), torch.arange(1, PROMPT + 1)[None], []
        with torch.inference_mode():
            for _ in range(steps + 1):
                started = time.perf_counter()
                ids = self._model(ids, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
                times.append((time.perf_counter() - started) * 1e3)
        return times[1:]

    def span_ms(self, steps: int) -> list[float]:
        """Milliseconds of each decode step through the span that a peer would run, without a swarm around it."""
        ids, position, times = torch.arange(1, PROMPT + 1), 0, []
        for _ in range(steps + 1):
            started = time.perf_counter()
            hidden = self._ends.embed(ids, torch.arange(position, position + len(ids)))
            hidden = self._span.forward(hidden, [Row(self._pages, position, len(ids))])
            position += len(ids)
            ids = self._ends.logits(hidden)[-1:].argmax(-1)
            times.append((time.perf_counter() - started) * 1e3)
        return times[1:]


def median(figures: Sequence[float]) -> float:
    """The middle figure."""
    return sorted(figures)[len(figures) // 2]


def spans(blocks: int, peers: int) -> list[str]:
    """Equal spans, one a peer."""
    size = blocks // peers
    return [f"{index * size}:{(index + 1) * size}" for index in range(peers)]
