"""POST /v1/chat/completions: answers to conversations, at once or streamed, with calls of tools."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from shoal.client.api.asks import ask_of, check_ids, options_of
from shoal.client.api.body import read_json
from shoal.client.api.chat_request import ChatRequest, read_chat
from shoal.client.api.gate import caller
from shoal.client.api.logprobs import chat_logprobs, scored
from shoal.client.api.provenance import headers, provenance
from shoal.client.api.replies import REASONS, reply, stream_reply, usage
from shoal.client.api.run import Run
from shoal.client.api.state import API, Api, now
from shoal.client.calls import Call, new_id
from shoal.client.reasoning import AnswerReader, Thought

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web
    from shoal.client.chat import ChatPrompt
    from shoal.client.generation import Piece
    from shoal.client.grammar import Grammar
    from shoal.client.serving import Answer


async def chats(request: web.Request) -> web.StreamResponse:
    """Answer a request. Errors: `ApiError`, and those of the client's generation."""
    api = request.app[API]
    asked = read_chat(await read_json(request, api.options))
    wishes, model = asked.wishes, api.check_model(asked.wishes.model)
    prompt = await api.conversations.prompt(asked)
    check_ids(api.serving.model, prompt.token_ids, "messages")
    generation = options_of(wishes, await _grammar(api, asked, prompt), api.serving.model, api.options)
    generation = api.conversations.options(generation, prompt, calls=asked.tool_choice != "none")
    api.check_ready()
    ask = ask_of(prompt.token_ids, generation, wishes.n, wishes, api.options, caller(request))
    work = _Chat(api, asked, model, prompt)
    with api.admission.enter(wishes.n):
        async with Run(api.serving, [ask], api.metrics) as run:
            if wishes.stream:
                response = await stream_reply(request, run, work, wishes)
            else:
                await run.finish()
                response = reply(work.whole(run.answers), headers(run.answers))
        for answer in run.answers:
            api.conversations.remember(prompt, answer)
        return response


async def _grammar(api: Api, asked: ChatRequest, prompt: ChatPrompt) -> Grammar | None:
    """What the answer must look like, if the request says so."""
    if asked.tool_choice == "none" or (asked.tool_choice == "auto" and asked.wishes.shape is None):
        return await api.shapes.grammar(asked.wishes.shape, prompt.thought)
    named = [tool for tool in asked.tools if asked.named_tool in (None, tool["function"]["name"])]
    return await api.shapes.calls(
        api.conversations.calls, named, parallel=asked.parallel_tools, instead=asked.wishes.shape,
        thought=prompt.thought,
    )  # fmt: skip


class _Chat:
    """Makes the JSON of one request's answers."""

    def __init__(self, api: Api, asked: ChatRequest, model: str, prompt: ChatPrompt) -> None:
        self._api, self._asked, self._prompt = api, asked, prompt
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}", "created": now(), "model": model,
            "system_fingerprint": api.fingerprint,
        }  # fmt: skip
        self._voices = [_Voice(api, asked, prompt) for _ in range(asked.wishes.n)]

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The JSON of a finished answer."""
        choices = [
            {
                "index": index,
                "message": self._voices[index].message(answer.pieces),
                "logprobs": self._logprobs(answer.pieces),
                "finish_reason": self._voices[index].reason(answer.pieces),
                **self._ids(answer.pieces),
            }
            for index, answer in enumerate(answers)
        ]
        body = {**self._head, "object": "chat.completion", "choices": choices}
        return {**body, "usage": self.usage(answers), "shoal": provenance(answers)}

    def events(self, batch: Sequence[tuple[int, Piece]]) -> list[dict[str, Any]]:
        """See `Writer`."""
        found = []
        for index, piece in batch:
            voice, first = self._voices[index], not self._voices[index].begun
            deltas, reason = voice.deltas(piece), voice.reason([piece])
            extra = {"logprobs": self._logprobs([piece]), **self._ids([piece])}
            if first:
                found.append(self._event(index, {"role": "assistant", "content": ""}, None, {"logprobs": None}))
            for delta in deltas or ([{}] if reason or extra["logprobs"] or len(extra) > 1 else []):
                found.append(self._event(index, delta, None, extra))
                extra = {"logprobs": None}
            if reason:
                found[-1]["choices"][0]["finish_reason"] = reason
        return found

    def last(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """See `Writer`."""
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self.usage(answers)}

    def usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The prompt's and all answers' tokens."""
        thinks = self._api.conversations.reading is not None
        thought = sum(voice.reasoning_tokens for voice in self._voices) if thinks else None
        return usage(len(self._prompt.token_ids), answers, max(1, len(answers)), thought)

    def _event(self, index: int, delta: dict[str, Any], reason: str | None, extra: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, **extra, "finish_reason": reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if self._asked.wishes.top_logprobs is None:
            return None
        return chat_logprobs(self._api.texts, scored(pieces))

    def _ids(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        if not self._asked.wishes.return_token_ids:
            return {}
        return {"token_ids": [piece.token_id for piece in pieces]}


class _Voice:
    """One answer's text on its way to reasoning, content and calls. `reasoning_tokens`: those of the reasoning so far,
    with the tokens that begin and end it, as far as they are the answer's."""

    def __init__(self, api: Api, asked: ChatRequest, prompt: ChatPrompt) -> None:
        self.begun = False
        self.reasoning_tokens = 0
        self._calls = 0
        self._most = len(asked.tools) and (1 << 31 if asked.parallel_tools else 1)
        names = [tool["function"]["name"] for tool in asked.tools]
        self._form = api.conversations.calls
        form = self._form if asked.tool_choice != "none" else None
        self._reader = AnswerReader(api.conversations.reading, prompt.begun, form, names)

    def deltas(self, piece: Piece) -> list[dict[str, Any]]:
        """What one more piece adds."""
        self.begun = True
        thought = self._reader.thinking
        found = self._reader.push(piece.text)
        self.reasoning_tokens += thought or self._reader.thinking
        found += self._reader.finish() if piece.finish else []
        return [delta for part in found if (delta := self._delta(part))]

    def message(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The whole answer."""
        deltas = [delta for piece in pieces for delta in self.deltas(piece)]
        content = "".join(delta.get("content", "") for delta in deltas)
        thought = "".join(delta.get("reasoning_content", "") for delta in deltas)
        calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
        message = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        message |= {"reasoning_content": thought} if thought else {}
        return {**message, "tool_calls": [_without_index(call) for call in calls]} if calls else message

    def reason(self, pieces: Sequence[Piece]) -> str | None:
        """Why the answer ended, once all of it was read; None if it goes on."""
        reason = REASONS[pieces[-1].finish] if pieces else None
        return "tool_calls" if reason == "stop" and self._calls else reason

    def _delta(self, part: str | Thought | Call) -> dict[str, Any]:
        if not isinstance(part, Call):
            return {"content": part} if isinstance(part, str) else {"reasoning_content": part.text}
        if self._calls >= self._most:
            return {}
        function = {"name": part.name, "arguments": part.arguments}
        call = {"index": self._calls, "id": new_id(self._form), "type": "function", "function": function}
        self._calls += 1
        return {"tool_calls": [call]}


def _without_index(call: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in call.items() if key != "index"}
