"""One swarm and one model for many requests: each request's answers are made side by side, piece by piece.

Knows sessions and generation; must not know HTTP, prompts as text or who asks.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from shoal.blocks.errors import PromptTooLong
from shoal.client.generation import Completion, GenerationError, check_ids, embed, generate, off_loop, prompt_of, room
from shoal.client.options import SessionOptions
from shoal.client.sampling_options import MAX_SEED
from shoal.peer.wire import PREFIX_TOKENS, Want

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import torch
    from shoal.client.generation import GenerationOptions, Piece
    from shoal.client.local import ClientModel
    from shoal.client.remote import RemoteSession
    from shoal.client.swarm import Swarm
    from shoal.routing.route import Hop


@dataclass(frozen=True)
class Ask:
    """Continue `prompt_ids` in `n` ways. The model's own end tokens end an answer, besides those of `options`, unless
    `ignore_eos`.

    With a seed, answer i is drawn with seed + i. `priority` 1 waits behind all that others wait for. `wait_s`: how long
    to wait for blocks that nobody serves. `activations`: how hidden states travel, as `SessionOptions.codec`. `user`:
    whose it is, if this client serves several: what peers know of one's prompts is not for another.
    """

    prompt_ids: tuple[int, ...]
    options: GenerationOptions
    n: int = 1
    priority: int = 0
    wait_s: float = 0.0
    activations: str = "auto"
    ignore_eos: bool = False
    user: str = ""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise GenerationError(f"n is {self.n}, but must be at least 1.")


@dataclass
class Answer(Completion):
    """One of an ask's answers, filled while it runs. `route`: the hops in use, those of the end once it has ended.

    `steps`: passes through them, those of the prompt too. `repairs`: how often hops were replaced after a failure;
    `moves`: ahead of one. `cached_tokens`: of the prompt, those that all hops held from before.
    """

    index: int = 0
    route: tuple[Hop, ...] = field(default=())
    steps: int = 0
    repairs: int = 0
    moves: int = 0
    cached_tokens: int = 0

    def note(self, session: RemoteSession) -> None:
        """Where the session stands now."""
        self.route, stats = session.route or self.route, session.stats
        self.steps, self.repairs, self.moves = stats.steps, stats.repairs, stats.moves
        self.cached_tokens = stats.cached_tokens


@dataclass(frozen=True)
class Embedded:
    """Hidden states `[n, width]`, or `[1, width]` of the last token alone, and how they were made."""

    hidden: torch.Tensor
    made: Answer


class Serving:
    """Made from a joined swarm and the same model's ends; it owns nothing that would have to be closed."""

    def __init__(self, swarm: Swarm, model: ClientModel) -> None:
        self.swarm, self.model = swarm, model
        self.in_flight = 0  # requests that are being answered
        self.last: Answer | None = None  # the first answer to the newest request

    def stream(self, ask: Ask) -> Stream:
        """`async with serving.stream(ask) as stream: async for index, piece in stream: ...`

        Errors, before anything is sent: `GenerationError`, `PromptTooLong`; from the iteration: those of `generate`.
        """
        room(self.model.ends.spec, ask.prompt_ids, ask.options.max_new_tokens)
        check_ids(self.model.ends.spec, [*ask.options.sampling.logit_bias])
        return Stream(self, ask)

    async def embed(self, token_ids: Sequence[int], *, last: bool = False, user: str = "") -> Embedded:
        """The last hidden states of `n` tokens, behind the final norm: what the head would see. `last`: those of the
        last token only, which spares the others' way back, and the work for what peers know of the text from before.

        Errors: `GenerationError`, `PromptTooLong`, `NoRouteError`, `SessionClosed`.
        """
        ends = self.model.ends
        check_ids(ends.spec, token_ids)
        if not token_ids:
            raise GenerationError("The text is empty; give at least one token.")
        if len(token_ids) > ends.spec.max_position:
            raise PromptTooLong(
                f"The text has {len(token_ids)} tokens; the model's context is {ends.spec.max_position}. Shorten it."
            )
        made, prompt = Answer(time.perf_counter()), prompt_of(ends.spec, token_ids, user=user) if last else None
        self.in_flight += 1
        try:
            options = SessionOptions(len(token_ids), dtype=self.model.dtype, prompt=prompt)
            async with self.swarm.session(options) as session:
                session.recall_with(lambda start, stop: embed(ends, token_ids[start:stop], start))
                await session.ready(token_ids)
                at = session.position
                hidden = await session.step(embed(ends, token_ids[at:], at), Want.LAST if last else Want.ALL)
                made.note(session)
            return Embedded(await off_loop(ends, ends.normed, hidden), made)
        finally:
            self.in_flight -= 1


class Stream:
    """The answers to one ask while they are made. Leaving it ends what still runs, and the leases on the peers."""

    def __init__(self, serving: Serving, ask: Ask) -> None:
        started_at = time.perf_counter()
        self.answers = [Answer(started_at, index=index) for index in range(ask.n)]
        self._serving, self._ask = serving, ask
        # Without a bound: a slow reader must not hold the peers' KV longer than the answers take.
        self._news: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue()
        self._running: list[asyncio.Task[None]] = []
        self._tasks = asyncio.TaskGroup()
        self._prompt_known = asyncio.Event()
        self._unread = ask.n  # answers whose last piece nobody has taken yet

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._serving.in_flight += 1
        self._serving.last = self.answers[0]
        self._running = [self._tasks.create_task(self._run(answer)) for answer in self.answers]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._running:
            task.cancel()
        self._serving.in_flight -= 1
        await self._tasks.__aexit__(None, None, None)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        """Which answer got which piece, as they come, until all have ended."""
        while self._unread:
            news = await self._news.get()
            if isinstance(news, Exception):
                raise news
            self._unread -= bool(news[1].finish)
            yield news

    async def _run(self, answer: Answer) -> None:
        try:
            if answer.index and len(self._ask.prompt_ids) > PREFIX_TOKENS:
                await self._prompt_known.wait()  # the hops then hold the prompt: it is run once for all answers
            await self._generate(answer)
        except Exception as error:  # noqa: BLE001  (the task's top: it is raised where the pieces are read)
            self._news.put_nowait(error)

    async def _generate(self, answer: Answer) -> None:
        ask, model = self._ask, self._serving.model
        options = self._options(answer.index)
        tokens = len(ask.prompt_ids) + room(model.ends.spec, ask.prompt_ids, options.max_new_tokens)
        terms = SessionOptions(
            tokens, dtype=model.dtype, codec=ask.activations, wait_s=ask.wait_s, priority=ask.priority,
            prompt=prompt_of(model.ends.spec, ask.prompt_ids, awaited=answer.index > 0, user=ask.user),
        )  # fmt: skip
        async with self._serving.swarm.session(terms) as session:
            async for piece in generate(session, model.ends, model.tokenizer, ask.prompt_ids, options):
                answer.note(session)
                answer.pieces.append(piece)
                self._news.put_nowait((answer.index, piece))
                self._prompt_known.set()

    def _options(self, index: int) -> GenerationOptions:
        options, sampling = self._ask.options, self._ask.options.sampling
        if index and sampling.seed is not None:
            sampling = replace(sampling, seed=(sampling.seed + index) % MAX_SEED)
        own = frozenset() if self._ask.ignore_eos else self._serving.model.eos
        return replace(options, sampling=sampling, eos_token_ids=options.eos_token_ids | own)
