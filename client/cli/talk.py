"""A joined swarm that answers conversations, for callers without an event loop; knows no terminal and no commands."""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, cast

from shoal.client.chat import Chat
from shoal.client.model.background import background, hold, only
from shoal.client.options import Model
from shoal.client.reasoning import AnswerReader
from shoal.client.sampling_options import Sampling, SamplingError
from shoal.client.serving import Ask, Serving
from shoal.client.swarm import join_swarm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from shoal.client.chat import ChatPrompt
    from shoal.client.cli.dialogue import Message
    from shoal.client.generation import GenerationOptions, Piece
    from shoal.client.local import ClientModel
    from shoal.client.serving import Answer
    from shoal.dht.invite import Invite
    from shoal.routing.view import View


class Talk:
    """See `open_talk`. `last` is the newest answer, filled while it comes."""

    def __init__(self, serving: Serving, *, background: bool, activations: str) -> None:
        self.last: Answer | None = None
        self._serving, self._priority, self._activations = serving, int(background), activations
        self._chat = Chat(serving.model)

    @property
    def peers(self) -> int:
        """How many serve the model now, as far as is known."""
        return len(self._serving.swarm.view.peers)

    def prompt(self, messages: Sequence[Message]) -> ChatPrompt:
        """A conversation that an answer is to follow. Errors: `ChatError`."""
        return self._chat.prompt(messages)

    def reader(self, prompt: ChatPrompt) -> AnswerReader:
        """What tells reasoning from the rest of the answer to `prompt`."""
        return AnswerReader(self._chat.reading, prompt.begun)

    def stream(self, prompt: ChatPrompt, options: GenerationOptions) -> Iterator[Piece]:
        """The pieces of an answer. Closing the iterator, or Ctrl-C in it, ends the answer and its leases on the peers,
        before it returns. Errors: those of `Serving.stream`."""
        self.last = None
        options = self._chat.options(options, prompt, calls=False)
        ask = Ask(prompt.token_ids, options, priority=self._priority, activations=self._activations)
        news: SimpleQueue[Any] = SimpleQueue()
        background().start(self._pump(ask, news))
        task: asyncio.Task[None] | None = None
        item: object = True
        try:
            task = news.get()
            while (item := news.get()) is not None:
                if isinstance(item, Exception):
                    raise only(item)
                yield cast("Piece", item)
            self._remember(prompt)
        finally:
            if item is not None:
                background().start(_cancel(task or news.get()))
                while news.get() is not None:
                    pass

    def _remember(self, prompt: ChatPrompt) -> None:
        if self.last is not None:
            self._chat.remember(prompt, self.last)

    async def _pump(self, ask: Ask, news: SimpleQueue[Any]) -> None:
        """The task itself first, then pieces or an error, None at the end. The terminal may be slow: nothing here waits
        for it, so that links stay alive."""
        news.put(asyncio.current_task())
        try:
            async with self._serving.stream(ask) as stream:
                self.last = stream.answers[0]
                async for _, piece in stream:
                    news.put(piece)
        except Exception as error:  # noqa: BLE001  (the task's top: it is raised where the pieces are read)
            news.put(error)
        finally:
            news.put(None)


@contextmanager
def open_talk(
    model: ClientModel, invite: Invite, wait_s: float, on_view: Callable[[View], None], **terms: Any
) -> Iterator[Talk]:
    """Join and wait until every block is held; `terms` as `Talk` takes them. Left at the end, also by an error.

    Errors: `JoinError`, `HostError`, `NoRouteError`.
    """
    spec = model.ends.spec
    shape = Model(spec.n_blocks, spec.hidden_size, model.checkpoint.revision)
    held = background().run(hold(join_swarm(invite, shape)))
    background().at_exit(held.close)
    try:
        background().run(held.value.wait_covered(wait_s, on_view))
        yield Talk(Serving(held.value, model), **terms)
    finally:
        background().not_at_exit(held.close)
        background().run(held.close())


def suggested(path: Path) -> Sampling:
    """How a model's makers would have tokens chosen, by its generation_config.json; greedy where that does not say."""
    try:
        stored = json.loads((path / "generation_config.json").read_text(encoding="utf-8"))
        if not stored.get("do_sample"):
            return Sampling()
        given = {name: stored[name] for name in ("top_k", "top_p", "min_p", "repetition_penalty") if stored.get(name)}
        return replace(Sampling(temperature=stored.get("temperature") or 1.0), **given)
    except (OSError, ValueError, TypeError, AttributeError, SamplingError):
        return Sampling()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
