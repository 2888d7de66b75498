"""A model for callers with an event loop of their own: servers, async scripts. Everything runs on the caller's loop."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shoal.blocks.ends import load_ends, load_tokenizer
from shoal.blocks.spec import check_length, spec_of
from shoal.client.generation import Completion, GenerationOptions, eos_token_ids, generate, prompt_of, room
from shoal.client.model.loading import Options, read_ends
from shoal.client.swarm import Model, SessionOptions, Swarm, SwarmOptions, join_swarm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from shoal.blocks.checkpoint import Checkpoint
    from shoal.blocks.ends import Ends
    from shoal.client.generation import Piece
    from shoal.client.remote import RemoteSession


class AsyncModel:
    """See `open_model`. `ends` embeds and scores, `swarm` finds peers, `tokenizer` is transformers'."""

    def __init__(self, checkpoint: Checkpoint, ends: Ends, swarm: Swarm, options: Options) -> None:
        self.ends, self.swarm = ends, swarm
        self.tokenizer: Any = load_tokenizer(checkpoint)
        self.eos = eos_token_ids(checkpoint.path, checkpoint.config)
        self._options = options

    def session(
        self, max_tokens: int, *, start: int = 0, stop: int | None = None, prompt: Sequence[int] = ()
    ) -> AbstractAsyncContextManager[RemoteSession]:
        """One sequence of at most `max_tokens` through blocks `[start, stop)`: `await session.step(hidden)`. `prompt`:
        the token ids that it will begin with, which peers may know from before. Errors: `PromptTooLong`."""
        check_length(max_tokens, self.ends.spec.max_position)
        options = self._options
        return self.swarm.session(
            SessionOptions(
                max_tokens, start, stop, dtype=str(options.kind(self.ends.spec)).removeprefix("torch."),
                codec=options.codec, wait_s=options.wait, priority=int(options.background),
                prompt=prompt_of(self.ends.spec, prompt) if prompt else None,
            )
        )  # fmt: skip

    async def generate(
        self, prompt: str | Sequence[int], options: GenerationOptions | None = None
    ) -> AsyncIterator[Piece]:
        """Continue a text or token ids, piece by piece; `options` as they are, but that the model's end tokens end too.

        Errors: `GenerationError`, `PromptTooLong`, `NoRouteError`, `SessionClosed`."""
        asked = options or GenerationOptions()
        given = replace(asked, eos_token_ids=asked.eos_token_ids | self.eos)
        ids = list(self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt)
        tokens = len(ids) + room(self.ends.spec, ids, given.max_new_tokens)
        async with self.session(tokens, prompt=ids) as session:
            async for piece in generate(session, self.ends, self.tokenizer, ids, given):
                yield piece

    async def complete(self, prompt: str | Sequence[int], options: GenerationOptions | None = None) -> Completion:
        """The whole of what `generate` gives, with its speed."""
        completion = Completion(time.perf_counter())
        async for piece in self.generate(prompt, options):
            completion.pieces.append(piece)
        return completion


@asynccontextmanager
async def open_model(name: str | None = None, **given: Any) -> AsyncIterator[AsyncModel]:
    """`async with open_model("demo", join=INVITE) as model`: options and errors as `from_pretrained`'s."""
    options = Options.of(given)
    invite = options.invite(name)
    checkpoint = read_ends(name or invite.model, options.revision)
    spec = spec_of(checkpoint)
    ends = load_ends(checkpoint, str(options.device), options.kind(spec))
    model = Model(spec.n_blocks, spec.hidden_size, checkpoint.revision)
    async with join_swarm(invite, model, SwarmOptions()) as swarm:
        yield AsyncModel(checkpoint, ends, swarm, options)
