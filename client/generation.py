"""Text from a session, token by token: embed, step, head, sample; knows no peers and no routes.

The head and the sampling are the client's, so what is chosen depends on the model's scores, the options and the seed
alone, whatever happens on the way.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from shoal.blocks.errors import PromptTooLong
from shoal.client.guess import MOST, Guesser
from shoal.client.prefix import Prompt
from shoal.client.sampling import Sampler
from shoal.client.sampling_options import Sampling
from shoal.client.text import StopFilter
from shoal.client.writer import Writer
from shoal.peer.wire import Want

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from shoal.blocks.ends import Ends
    from shoal.blocks.spec import ModelSpec
    from shoal.client.writer import Stops

INLINE_WEIGHTS = 1 << 26  # a head with more numbers than this is computed off the event loop, which must not stall
T = TypeVar("T")


class GenerationError(Exception):
    """The prompt cannot be run; the message is one sentence for the user."""


class StepSession(Protocol):
    """What generation needs of a session: `client.remote.RemoteSession` is one."""

    @property
    def position(self) -> int: ...

    @position.setter
    def position(self, position: int) -> None: ...

    async def step(self, hidden: torch.Tensor, want: Want = ..., *, prompt: bool = ...) -> torch.Tensor: ...

    def recall_with(self, recall: Callable[[int, int], torch.Tensor]) -> None: ...

    async def ready(self, token_ids: Sequence[int]) -> None: ...

    def remember(self, tokens: Callable[[], Sequence[int]]) -> None: ...


class Constraint(Protocol):
    """What may come next in one completion: `client.grammar` makes them."""

    @property
    def ended(self) -> bool:
        """Nothing more may come."""

    def allowed(self) -> torch.Tensor: ...  # [vocab], booleans

    def accept(self, token_id: int) -> None: ...


class Grammar(Protocol):
    """Which texts a completion may become."""

    def begin(self) -> Constraint: ...


@dataclass(frozen=True)
class GenerationOptions:
    """`max_new_tokens` at most; fewer if the model's context ends. `stops` end the text and are not part of it.
    A token of `eos_token_ids` ends it too (see `eos_token_ids`), and so does `grammar` where nothing may follow.
    `top_logprobs`: how many of the most probable tokens each piece tells of. `shown`: special tokens that are text all
    the same, such as the marks of a tool's call. `stops_by`: makes what looks for the stops in one text. `speculate`:
    so many tokens at most are guessed from the text and sent with each step; the model's scores decide (`guess`)."""

    max_new_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    eos_token_ids: frozenset[int] = frozenset()
    top_logprobs: int = 0
    grammar: Grammar | None = None
    shown: frozenset[int] = frozenset()
    stops_by: Callable[[Sequence[str]], Stops] = StopFilter
    speculate: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise GenerationError(f"max-new-tokens is {self.max_new_tokens}, but must be at least 1.")
        if not all(self.stops):
            raise GenerationError("A stop string must not be empty.")
        if self.top_logprobs < 0:
            raise GenerationError(f"top-logprobs is {self.top_logprobs}, but must be a whole number from 0 up.")
        if not 0 <= self.speculate <= MOST:
            raise GenerationError(f"speculate is {self.speculate}, but must be a whole number from 0 (off) to {MOST}.")


@dataclass(frozen=True, slots=True)
class Piece:
    """One token. `text` is what became final with it: often "", sometimes several characters, never half a one.

    `logprob`: natural logarithm of its probability under the model. `at`: seconds of `time.perf_counter`.
    `finish`: on the last piece "eos" (also where a grammar ended it), "stop" or "length", else "".
    `top`: the most probable tokens and their logprobs, best first, as many as `top_logprobs` asked for.
    """

    token_id: int
    text: str
    logprob: float
    at: float
    finish: str = ""
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Completion:
    """The pieces of one generation and what follows from them; `started_at` in seconds of `time.perf_counter`."""

    started_at: float
    pieces: list[Piece] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def token_ids(self) -> list[int]:
        return [piece.token_id for piece in self.pieces]

    @property
    def finish(self) -> str:
        return self.pieces[-1].finish if self.pieces else ""

    @property
    def ttft_s(self) -> float:
        """Seconds from `started_at` to the first token."""
        return self.pieces[0].at - self.started_at if self.pieces else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second after the first one (the prompt's pass is not in it); 0 for fewer than two tokens."""
        elapsed_s = self.pieces[-1].at - self.pieces[0].at if self.pieces else 0.0
        return (len(self.pieces) - 1) / elapsed_s if elapsed_s > 0 else 0.0


async def generate(
    session: StepSession, ends: Ends, tokenizer: Any | None, prompt_ids: Sequence[int], options: GenerationOptions
) -> AsyncIterator[Piece]:
    """Continue `prompt_ids`, which include the tokens that the session already holds: its `position` once it is ready.

    `tokenizer`: a transformers tokenizer, or None for tokens without text. The last token is not run through the
    blocks: nobody needs its hidden states yet. Errors: `GenerationError`, `PromptTooLong`, `SamplingError`, and what
    the session raises.
    """
    count = room(ends.spec, prompt_ids, options.max_new_tokens)
    ids = list(prompt_ids)
    if session.position >= len(ids):
        raise GenerationError(f"The session already holds {session.position} tokens; the prompt has {len(ids)}.")
    check_ids(ends.spec, [*options.sampling.logit_bias])
    session.recall_with(lambda start, stop: embed(ends, ids[start:stop], start))
    sampler, writer = Sampler(options.sampling), Writer(tokenizer, ids, options)
    constraint = options.grammar.begin() if options.grammar is not None else None
    # Positions mean the same in a longer prompt: the answer's KV is good for it too.
    alike = ends.spec.length_kind(len(ids)) == ends.spec.length_kind(len(ids) + count)
    if not session.position and alike:
        session.remember(lambda: ids)
    guesser = Guesser(options.speculate if alike else 0)
    made = session.position or len(ids)  # tokens of the text that the KV is of
    await session.ready(ids)
    while True:
        if ends.spec.outgrown(made, len(ids)):
            session.position = 0
        made = len(ids)
        hidden, guesses = await _step(session, ends, ids, guesser, len(prompt_ids) + count - made - 1)
        for index, scores in enumerate(await off_loop(ends, ends.logits, hidden)):
            allowed = constraint.allowed() if constraint is not None else None
            choice = sampler.choose(scores, ids, options.top_logprobs, allowed)
            ids.append(choice.token_id)
            if constraint is not None:
                constraint.accept(choice.token_id)
            ended, last = constraint is not None and constraint.ended, len(ids) == len(prompt_ids) + count
            text, finish = writer.write(choice.token_id, ended=ended, last=last)
            right = guesses[index : index + 1] == [choice.token_id]
            if index + right < len(guesses) and (finish or not right):
                session.position = len(ids) - 1 + right  # behind it the KV is of wrong guesses
            yield Piece(choice.token_id, text, choice.logprob, time.perf_counter(), finish, choice.top)
            if finish:
                return
            if not right:
                guesser.judged(len(guesses), index)
                break


async def _step(
    session: StepSession, ends: Ends, ids: Sequence[int], guesser: Guesser, most: int
) -> tuple[torch.Tensor, list[int]]:
    """The states `[1 + n, hidden]` behind the newest token and `n` guesses, and these: at most `most`."""
    start, began = session.position, time.perf_counter()
    alone = len(ids) - start == 1
    guesses = guesser.guess(ids, most) if alone else []
    rows = embed(ends, [*ids[start:], *guesses], start)
    hidden = await (session.step(rows, Want.ALL, prompt=False) if guesses else session.step(rows, Want.LAST))
    if alone:
        guesser.took(len(guesses), time.perf_counter() - began)
    return hidden, guesses


def room(spec: ModelSpec, prompt_ids: Sequence[int], max_new_tokens: int) -> int:
    """How many tokens may follow the prompt: at least 1, at most `max_new_tokens`, within the model's context.

    Errors: `GenerationError` (no prompt, or ids that are not in the vocabulary), `PromptTooLong`.
    """
    if not prompt_ids:
        raise GenerationError("The prompt is empty; give at least one token.")
    check_ids(spec, prompt_ids)
    if len(prompt_ids) >= spec.max_position:
        raise PromptTooLong(
            f"The prompt has {len(prompt_ids)} tokens, but the model's context of {spec.max_position} must hold it and "
            "at least one new token; shorten the prompt."
        )
    return min(max_new_tokens, spec.max_position - len(prompt_ids))


def check_ids(spec: ModelSpec, token_ids: Sequence[int]) -> None:
    """Errors: `GenerationError` where one is not in the vocabulary."""
    if strangers := [token for token in token_ids if not 0 <= token < spec.vocab_size]:
        raise GenerationError(f"Token id {strangers[0]} is not in the model's vocabulary of {spec.vocab_size}.")


def prompt_of(spec: ModelSpec, prompt_ids: Sequence[int], *, awaited: bool = False, user: str = "") -> Prompt:
    """A prompt as a session wants to know it before it opens."""
    return Prompt(tuple(prompt_ids), spec.length_kind(len(prompt_ids)), awaited, user)


def eos_token_ids(path: Path, config: Mapping[str, Any]) -> frozenset[int]:
    """The tokens that end a text: `eos_token_id` of `path`/generation_config.json, else of the model's config; a
    number, a list or nothing, as transformers writes it."""
    file = path / "generation_config.json"
    try:
        stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise GenerationError(f"{file} cannot be read: {error}") from error
    nested = config.get("text_config") or {}
    found = (source.get("eos_token_id") for source in (stored, config, nested))
    chosen = next((value for value in found if value is not None), ())
    return frozenset([chosen] if isinstance(chosen, int) else chosen)


def embed(ends: Ends, ids: Sequence[int], start: int) -> torch.Tensor:
    """Hidden states `[n, hidden]` of `ids`, the first at position `start`."""
    return ends.embed(torch.tensor(ids), torch.arange(start, start + len(ids)))


async def off_loop(ends: Ends, work: Callable[[torch.Tensor], T], hidden: torch.Tensor) -> T:
    """`work(hidden)`, in a thread where it would hold the event loop up."""
    if ends.spec.vocab_size * ends.spec.hidden_size <= INLINE_WEIGHTS:
        return work(hidden)
    return await asyncio.to_thread(work, hidden)
