"""Sessions over a span in this process, in place of a swarm: real blocks and real KV, no network."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import torch
from shoal.blocks.checkpoint import resolve
from shoal.blocks.ends import load_ends
from shoal.blocks.kv import PAGE_TOKENS
from shoal.blocks.span import Row, Span, SpanOptions, load_span
from shoal.client.actions import SessionStats
from shoal.client.model.lanes import RemoteBlocks
from shoal.client.model.loading import SCORE, Loaded, library_config
from shoal.peer.wire import Want

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from shoal.client.swarm import SessionOptions

PAGES = 256


class LocalSession:
    """One sequence; `sent` counts the tokens that were run."""

    def __init__(self, swarm: LocalSwarm, options: SessionOptions) -> None:
        self._swarm, self._options = swarm, options
        self._pages = [swarm.free.pop() for _ in range(-(-options.max_tokens // PAGE_TOKENS))]
        self._position = 0
        self.route, self.stats = (), SessionStats()
        self.recall: Callable[[int, int], torch.Tensor] | None = None
        self.remembered: Callable[[], Sequence[int]] = tuple

    @property
    def position(self) -> int:
        return self._position

    @position.setter
    def position(self, position: int) -> None:
        assert 0 <= position <= self._position
        self._position = position

    def recall_with(self, recall: Callable[[int, int], torch.Tensor]) -> None:
        self.recall = recall

    def remember(self, tokens: Callable[[], Sequence[int]]) -> None:
        self.remembered = tokens

    async def step(self, hidden: torch.Tensor, want: Want = Want.LAST, *, prompt: bool = True) -> torch.Tensor:
        assert self._position + len(hidden) <= self._options.max_tokens
        if self._swarm.fails:
            self._swarm.fails -= 1
            raise ConnectionError("made to fail")
        row = Row(self._pages, self._position, len(hidden))
        self._position += len(hidden)
        self._swarm.sent += len(hidden)
        assert torch.equal(self.recall(row.position, row.end), hidden)  # what a new hop would be refilled with
        out = self._swarm.span.forward(hidden.clone(), [row], self._options.start, self._options.stop)
        return {Want.ALL: out, Want.LAST: out[-1:], Want.NONE: out[:0]}[want]

    def close(self) -> None:
        self._swarm.remembered.append(list(self.remembered())[: self._position])
        self._swarm.free += self._pages


class LocalSwarm:
    """`sent`: tokens run in all; `open`: sessions now; `fails`: so many steps are refused next;
    `remembered`: what each session told that its KV held in the end."""

    def __init__(self, span: Span) -> None:
        self.span, self.free = span, list(range(PAGES))
        self.sent = self.open = self.opened = self.fails = 0
        self.remembered: list[list[int]] = []

    @asynccontextmanager
    async def session(self, options: SessionOptions) -> AsyncIterator[LocalSession]:
        session = LocalSession(self, options)
        self.open += 1
        self.opened += 1
        try:
            yield session
        finally:
            self.open -= 1
            session.close()

    def close(self) -> None:
        """As a connection's."""


def load_local(folder: Path, *, score: bool = False) -> Loaded:
    """What `from_pretrained` loads, over a `LocalSwarm`, in fp32."""
    checkpoint = resolve(str(folder))
    ends = load_ends(checkpoint, dtype=torch.float32, head=not score)
    spec = ends.spec
    swarm = LocalSwarm(load_span(checkpoint, range(spec.n_blocks), SpanOptions(kv_pages=PAGES, dtype=torch.float32)))
    blocks = RemoteBlocks(
        swarm, 0, spec.n_blocks, spec.hidden_size, torch.float32, spec.max_position, spec.length_kind, spec.outgrown
    )
    head = checkpoint.read([SCORE])[SCORE].float() if score else None
    return Loaded(library_config(checkpoint), checkpoint, ends, blocks, swarm, head)
