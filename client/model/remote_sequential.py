"""A model's blocks in the swarm as one torch module that can be cut: `RemoteSequential`. Knows no ends."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from shoal.client.model.inference import InferenceSession, refuse_gradients
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.client.model.connection import Connection
    from shoal.client.model.lanes import Embed, RemoteBlocks


class RemoteSequential(nn.Module):
    """Consecutive blocks, served by whoever serves them. `blocks[3:7]` and `blocks[3]` are the same for fewer of them.

    `model.transformer.h` is one of a model that is loaded; `RemoteSequential.from_pretrained` gives one alone.
    """

    def __init__(
        self, config: Any, blocks: RemoteBlocks, connection: Connection | None = None, embed: Embed | None = None
    ) -> None:
        super().__init__()
        self.config, self.blocks, self.connection, self.embed = config, blocks, connection, embed
        self._active: ContextVar[InferenceSession | None] = ContextVar("active_session", default=None)

    @classmethod
    def from_pretrained(
        cls, name: str | None = None, *, start_block: int = 0, end_block: int | None = None, **options: Any
    ) -> RemoteSequential:
        """Blocks `[start_block, end_block)` (default: all) of a model, without its embedding and head.

        `options`: those of `AutoDistributedModel.from_pretrained`. Errors: those, and `ValueError` for blocks that the
        model lacks."""
        from shoal.client.model.loading import open_blocks

        config, blocks, connection = open_blocks(name, options)
        whole = cls(config, blocks, connection)
        try:
            return whole[start_block : len(whole) if end_block is None else end_block]
        except (ValueError, IndexError):
            connection.close()
            raise

    def forward(self, inputs: torch.Tensor, prompts: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states `[B, T, width]` through all blocks: a step of the active session if there is one, else each
        sequence from its beginning, and nothing is kept. Errors: those of `InferenceSession.step`; no gradients."""
        refuse_gradients(inputs)
        if (session := self.active_session) is not None:
            return session.step(inputs, prompts)
        if inputs.ndim != 3:
            raise ValueError(f"Expected hidden states [batch, tokens, {self.blocks.width}], got {list(inputs.shape)}.")
        with InferenceSession(self.blocks, max(1, inputs.shape[1])) as session:
            return session.step(inputs, prompts)

    @property
    def active_session(self) -> InferenceSession | None:
        """The session of the `with` around this call, in this thread or task."""
        return self._active.get()

    @property
    def position(self) -> int:
        """The active session's position, 0 without one."""
        return self.active_session.position if self.active_session is not None else 0

    @contextmanager
    def use_session(self, session: InferenceSession | None) -> Iterator[InferenceSession | None]:
        """Let calls inside go through `session`; None: through none."""
        token = self._active.set(session)
        try:
            yield session
        finally:
            self._active.reset(token)

    @contextmanager
    def inference_session(self, *, max_length: int | None = None) -> Iterator[InferenceSession]:
        """A new session with room for `max_length` tokens (None: it grows), used by calls inside and closed behind."""
        session = InferenceSession(self.blocks, max_length, embed=self.embed)
        with session, self.use_session(session):
            yield session

    def __len__(self) -> int:
        return self.blocks.stop - self.blocks.start

    def __getitem__(self, index: int | slice) -> RemoteSequential:
        if isinstance(index, int):
            at = range(len(self))[index]
            index = slice(at, at + 1)
        start, stop, step = index.indices(len(self))
        if step != 1 or start >= stop:
            raise ValueError(f"Blocks {index.start}:{index.stop}:{index.step} of {len(self)} are no range of blocks.")
        first = self.blocks.start
        blocks = replace(self.blocks, start=first + start, stop=first + stop)
        return RemoteSequential(self.config, blocks, self.connection, self.embed if blocks == self.blocks else None)

    def __iter__(self) -> Iterator[RemoteSequential]:
        return (self[index] for index in range(len(self)))

    def extra_repr(self) -> str:
        """Which blocks."""
        return f"blocks={self.blocks.start}:{self.blocks.stop}"

    def close(self) -> None:
        """Leave the swarm, if this module was loaded alone."""
        if self.connection is not None:
            self.connection.close()
