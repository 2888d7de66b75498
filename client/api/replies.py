"""How finished and growing answers are sent; knows no kind of request."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import web
from shoal.client.api.errors import ApiError
from shoal.client.api.provenance import headers, provenance
from shoal.client.api.state import API
from shoal.client.api.stream import EventStream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shoal.client.api.run import Run
    from shoal.client.api.wishes import Wishes
    from shoal.client.generation import Piece
    from shoal.client.serving import Answer

REASONS = {"": None, "eos": "stop", "stop": "stop", "length": "length"}


class Writer(Protocol):
    """Makes the events of a stream: those of some news (a piece without text says nothing unless its logprobs or ids
    are wanted, the last one of an answer always does), and the one behind all, with the usage."""

    def events(self, batch: Sequence[tuple[int, Piece]]) -> list[dict[str, Any]]: ...

    def last(self, answers: Sequence[Answer]) -> dict[str, Any]: ...

    def usage(self, answers: Sequence[Answer]) -> dict[str, Any]: ...


def reply(body: Mapping[str, Any], headers: Mapping[str, str]) -> web.Response:
    """JSON at once."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    data = text.encode("utf-8", "replace")  # an error may quote a header's odd bytes
    return web.Response(body=data, content_type="application/json", charset="utf-8", headers=headers)


async def stream_reply(request: web.Request, run: Run, writer: Writer, wishes: Wishes) -> web.StreamResponse:
    """Events as the answers grow. Nothing is sent before the first token: until then an error has its own status."""
    api = request.app[API]
    stream: EventStream | None = None
    try:
        async for batch in run.batches():
            stream = stream or EventStream(request, headers(run.answers), api.options.write_s)
            events = writer.events(batch)
            if run.ended:
                events[-1]["shoal"] = provenance(run.answers)
            for event in events:
                stream.add({**event, "usage": writer.usage(run.answers)} if wishes.usage_in_each else event)
            await stream.flush()
    except ConnectionError:
        raise
    except Exception as error:
        if stream is None or not stream.response.prepared:
            raise
        found = api.explain(error)
        await stream.fail(found or ApiError(500, "The server made a mistake.", code="internal_error"))
        if found is None:
            raise
        return stream.response
    if stream is None:
        raise RuntimeError("answers ended without a token")
    if wishes.include_usage:
        stream.add(writer.last(run.answers))
    await stream.end()
    return stream.response


def usage(
    prompt_tokens: int, answers: Sequence[Answer], per_prompt: int, reasoning_tokens: int | None = None
) -> dict[str, Any]:
    """Tokens so far. `cached_tokens`: of the prompts, those that no peer had to run; of a prompt's `per_prompt` answers
    the first one counts, since the others' prompt is its own. `reasoning_tokens`: of the answers', None for a model
    that does not tell its reasoning from the rest."""
    made = sum(len(answer.pieces) for answer in answers)
    cached = sum(answer.cached_tokens for answer in answers[::per_prompt])
    of_those = {} if reasoning_tokens is None else {"completion_tokens_details": {"reasoning_tokens": reasoning_tokens}}
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": made,
        "total_tokens": prompt_tokens + made,
        "prompt_tokens_details": {"cached_tokens": cached},
        **of_those,
    }
