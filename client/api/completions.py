"""POST /v1/completions: texts continued, at once or streamed; knows no chat."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal.client.api.asks import ask_of, options_of, token_ids
from shoal.client.api.body import read_json
from shoal.client.api.completion_request import CompletionRequest, read_completion
from shoal.client.api.gate import caller
from shoal.client.api.logprobs import Places, Scored, completion_logprobs, scored
from shoal.client.api.provenance import headers, provenance
from shoal.client.api.replies import REASONS, reply, stream_reply, usage
from shoal.client.api.run import Run
from shoal.client.api.scoring import score
from shoal.client.api.state import API, Api, now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web
    from shoal.client.generation import Piece
    from shoal.client.serving import Answer


async def completions(request: web.Request) -> web.StreamResponse:
    """Answer a request. Errors: `ApiError`, and those of the client's generation."""
    api = request.app[API]
    asked = read_completion(await read_json(request, api.options))
    model = api.check_model(asked.wishes.model)
    prompts = [await _prompt(api, prompt, asked) for prompt in asked.prompts]
    grammar = await api.shapes.grammar(asked.wishes.shape)
    generation = options_of(asked.wishes, grammar, api.serving.model, api.options)
    api.check_ready()
    with api.admission.enter(len(prompts) * asked.best_of):
        if asked.echo and asked.wishes.top_logprobs is not None:
            for prompt in prompts:
                prompt.scored = await score(api.serving, prompt.ids, asked.wishes.top_logprobs)
        work = _Completion(api, asked, model, prompts)
        if not asked.wishes.max_tokens:
            return reply(work.whole([]), {})
        user = caller(request)
        asks = [ask_of(prompt.ids, generation, asked.best_of, asked.wishes, api.options, user) for prompt in prompts]
        async with Run(api.serving, asks, api.metrics) as run:
            if asked.wishes.stream:
                return await stream_reply(request, run, work, asked.wishes)
            await run.finish()
        return reply(work.whole(run.answers), headers(run.answers))


@dataclass
class _Prompt:
    """A prompt's tokens and text; `scored` if its log-probabilities are wanted."""

    ids: list[int]
    text: str
    scored: list[Scored]


async def _prompt(api: Api, given: str | tuple[int, ...], asked: CompletionRequest) -> _Prompt:
    model = api.serving.model
    ids = await token_ids(model, given, "prompt", special=asked.special_tokens)
    text = given if isinstance(given, str) else model.tokenizer.decode(ids) if asked.echo and model.tokenizer else ""
    return _Prompt(ids, text, [])


class _Completion:
    """Makes the JSON of one request's answers; answer i belongs to prompt i // best_of."""

    def __init__(self, api: Api, asked: CompletionRequest, model: str, prompts: Sequence[_Prompt]) -> None:
        self._api, self._asked, self._prompts = api, asked, prompts
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": now(), "model": model,
            "system_fingerprint": api.fingerprint,
        }  # fmt: skip
        self._places = [Places(api.texts) for _ in range(len(prompts) * asked.best_of)]
        self._begun: set[int] = set()

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The JSON of a finished answer; without any answers the prompts alone (`max_tokens` 0)."""
        chosen = self._chosen(answers) if answers else self._prompts_alone()
        choices = [self._choice(index, at, answers[at].pieces if answers else [], done=True)
                   for index, at in enumerate(chosen)]  # fmt: skip
        return {**self._head, "choices": choices, "usage": self.usage(answers), "shoal": provenance(answers)}

    def events(self, batch: Sequence[tuple[int, Piece]]) -> list[dict[str, Any]]:
        """See `Writer`."""
        found = []
        for at, piece in batch:
            first = at not in self._begun
            self._begun.add(at)
            choice = self._choice(at, at, [piece], done=False, echo=first)
            if choice["text"] or choice["finish_reason"] or choice["logprobs"] or "token_ids" in choice:
                found.append({**self._head, "choices": [choice]})
        return found

    def last(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """See `Writer`."""
        return {**self._head, "choices": [], "usage": self.usage(answers)}

    def usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """All prompts' and all answers' tokens."""
        return usage(sum(len(prompt.ids) for prompt in self._prompts), answers, self._asked.best_of)

    def _prompts_alone(self) -> list[int]:
        n, best_of = self._asked.wishes.n, self._asked.best_of
        return [first + number for first in range(0, len(self._prompts) * best_of, best_of) for number in range(n)]

    def _chosen(self, answers: Sequence[Answer]) -> list[int]:
        """Of each prompt's `best_of` answers the `n` with the highest mean log-probability of a token."""
        n, best_of = self._asked.wishes.n, self._asked.best_of
        found: list[int] = []
        for first in range(0, len(answers), best_of):
            group = range(first, first + best_of)
            found += sorted(group, key=lambda at: -_mean(answers[at].pieces))[:n] if best_of > n else group
        return found

    def _choice(self, index: int, at: int, pieces: Sequence[Piece], *, done: bool, echo: bool = True) -> dict[str, Any]:
        echoed = self._echoed(at) if echo else ""
        made = "".join(piece.text for piece in pieces)
        choice: dict[str, Any] = {
            "index": index, "text": echoed + made,
            "logprobs": self._logprobs(at, pieces, echo=echo and self._asked.echo),
            "finish_reason": REASONS[pieces[-1].finish] if pieces else "length" if done else None,
        }  # fmt: skip
        if self._asked.wishes.return_token_ids:
            choice["token_ids"] = [piece.token_id for piece in pieces]
            choice["prompt_token_ids"] = self._prompt_of(at).ids if echo else None
        return choice

    def _logprobs(self, at: int, pieces: Sequence[Piece], *, echo: bool) -> dict[str, Any] | None:
        if self._asked.wishes.top_logprobs is None:
            return None
        tokens = [*(self._prompt_of(at).scored if echo else []), *scored(pieces)]
        return completion_logprobs(self._api.texts, tokens, self._places[at])

    def _prompt_of(self, at: int) -> _Prompt:
        return self._prompts[at // self._asked.best_of]

    def _echoed(self, at: int) -> str:
        return self._prompt_of(at).text if self._asked.echo else ""


def _mean(pieces: Sequence[Piece]) -> float:
    return sum(piece.logprob for piece in pieces) / max(1, len(pieces))
