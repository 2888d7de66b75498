"""What a pipeline over a network cannot beat: compute measured in this process without any network, and legs.

A leg takes half a measured round trip, and bytes over the rate. The machine's cores bound what peers do at once. A
token passes all spans in turn, here as there: on a machine that they share, none finds its weights in the caches as it
does when it runs again and again by itself (`apart`, which is told beside).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from _swarm import median
from _wan_swarm import PEERS, bounds, prompt
from shoal.blocks.formats import row_bytes
from shoal.blocks.kv import PAGE_TOKENS
from shoal.blocks.span import Row, SpanOptions, load_span

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _wan_swarm import Setting
    from shoal.blocks.span import Span
    from shoal.client.local import ClientModel

STEPS = 20


@dataclass(frozen=True)
class Compute:
    """Seconds, one thread. decode: a token's, of each peer's span; prefill: the prompt's, of each span; ends: a
    token's embedding and head; chunks: pieces that the prompt was cut into. apart: the sum of `decode` and `ends`, each
    measured by itself."""

    decode: tuple[float, ...]
    prefill: tuple[float, ...]
    ends: float
    chunks: int
    apart: float


@dataclass(frozen=True)
class Legs:
    """From hop to hop. latency: seconds one way, as measured; rate: bits/s, 0 for no limit; row: bytes of one token."""

    latency: float
    rate: float
    row: int

    def busy(self, tokens: int) -> float:
        """Seconds that so many tokens occupy a leg."""
        return tokens * self.row * 8 / self.rate if self.rate else 0.0


def legs_of(setting: Setting, round_trip: float, codec: str | None, width: int) -> Legs:
    """Legs of a setting in which a small message and its answer were measured to take `round_trip`."""
    return Legs(round_trip / 2, setting.rate, row_bytes(codec or "float32", width))


def ideal_decode(compute: Compute, legs: Legs) -> float:
    """Seconds of a step: every leg, every span and the client's ends, one after the other."""
    return (PEERS + 1) * (legs.latency + legs.busy(1)) + sum(compute.decode) + compute.ends


def ideal_prefill(compute: Compute, legs: Legs, tokens: int) -> float:
    """Seconds of a prompt: the slowest stage, leg or all cores busy all the time, and one chunk through the rest."""
    parts = [*compute.prefill, *[legs.busy(tokens)] * PEERS]
    cores = sum(compute.prefill) / (os.cpu_count() or 1)
    fill = (sum(parts) - max(parts)) / compute.chunks + (PEERS + 1) * legs.latency
    return max(*parts, cores) + fill


def unpipelined_prefill(compute: Compute, legs: Legs, tokens: int) -> float:
    """Seconds of a prompt that goes whole from hop to hop."""
    return sum(compute.prefill) + PEERS * legs.busy(tokens) + (PEERS + 1) * legs.latency


class Alone:
    """Each peer's span in this process, to be measured in turns with the swarm: the machine's moods then hit both."""

    def __init__(self, model: ClientModel, tokens: int) -> None:
        self._model = model
        self._pages = tokens // PAGE_TOKENS + 16
        options = SpanOptions(kv_pages=self._pages, dtype=torch.float32)
        spans = bounds(model.ends.spec.n_blocks)
        self._spans = [load_span(model.checkpoint, range(start, stop), options) for start, stop in spans]
        self._prompt = torch.randn(tokens, model.ends.spec.hidden_size)

    def measure(self, context: int, chunks: int) -> Compute:
        """A single token behind `context`, and the prompt in `chunks` pieces, through each span; the client's ends."""
        pieces = torch.split(self._prompt, -(-len(self._prompt) // chunks))
        prefill = tuple(_median(partial(_whole, span, self._pages, pieces), 1) for span in self._spans)
        parts = [partial(_run, span, self._pages, context, self._prompt[:1]) for span in self._spans]
        parts.append(partial(self._ends, context))
        *decode, ends = _medians_in_turn(parts, STEPS)
        apart = sum(_median(part, STEPS) for part in parts)
        return Compute(tuple(decode), prefill, ends, chunks, apart)

    def _ends(self, context: int) -> None:
        ids = torch.tensor(prompt(self._model, 1))
        ends = self._model.ends
        ends.logits(ends.embed(ids, torch.tensor([context]))).argmax()


def mean(one: Compute, other: Compute) -> Compute:
    """Between a measurement before and one after."""

    def between(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
        return tuple((x + y) / 2 for x, y in zip(a, b, strict=True))

    ends, apart = between((one.ends, one.apart), (other.ends, other.apart))
    return Compute(between(one.decode, other.decode), between(one.prefill, other.prefill), ends, one.chunks, apart)


def _whole(span: Span, pages: int, pieces: tuple[torch.Tensor, ...]) -> None:
    position = 0
    for piece in pieces:
        _run(span, pages, position, piece)
        position += len(piece)


def _run(span: Span, pages: int, position: int, hidden: torch.Tensor) -> None:
    span.forward(hidden, [Row(tuple(range(pages)), position, len(hidden))])


def _median(work: Callable[[], object], repeats: int) -> float:
    """Median seconds, after a first time that is not counted."""
    return _medians_in_turn([work], repeats)[0]


def _medians_in_turn(parts: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each part, one part after the other."""
    times: list[list[float]] = [[] for _ in parts]
    for _ in range(repeats + 1):
        for taken, part in zip(times, parts, strict=True):
            began = time.perf_counter()
            part()
            taken.append(time.perf_counter() - began)
    return [median(taken[1:]) for taken in times]
