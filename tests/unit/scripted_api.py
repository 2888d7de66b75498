"""Chats with a scripted model through the whole HTTP application."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING
from unittest.mock import patch

from aiohttp.test_utils import TestClient, TestServer
from scripted_model import scripted, thinking_model
from shoal.client.api.app import make_app
from shoal.client.api.options import ApiOptions, Doors
from shoal.client.api.state import API
from shoal.client.web.files import read_files

if TYPE_CHECKING:
    from shoal.client.api.shapes import Shapes

HELLO = [{"role": "user", "content": "How is it?"}]


@cache
def model_of(template: str):
    return thinking_model(template)


kept: dict[str, Shapes] = {}  # a model's grammars outlast its application here: they take longest of all to make
pages = cache(read_files)  # each application would pack them anew


async def ask(template: str, text: str | list[str], **body):
    """The answer as JSON, and the prompts that the model was given."""
    answer, serving = await served(template, text, **body)
    return answer, [model_of(template).tokenizer.decode(ids) for ids in serving.swarm.asked]


async def served(template: str, text: str | list[str], *, speculate: int = 0, **body):
    """The answer as JSON, and what served it."""
    serving = scripted(model_of(template), *([text] if isinstance(text, str) else text))
    with patch("shoal.client.web.pages.read_files", pages):
        app = make_app(serving, ApiOptions("demo", Doors(frozenset()), wait_s=1.0, speculate=speculate))
    app[API] = replace(app[API], shapes=kept.setdefault(template, app[API].shapes))
    async with TestClient(TestServer(app)) as client:
        answer = await client.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 200, **body})
        assert answer.status == 200, await answer.text()
        if not body.get("stream"):
            return await answer.json(), serving
        lines = (await answer.text()).splitlines()
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        return [json.loads(event) for event in events[:-1]], serving


def length(template: str, text: str) -> int:
    return len(model_of(template).tokenizer(text, add_special_tokens=False)["input_ids"])


def gathered(events, index: int = 0) -> dict[str, object]:
    """The message that a stream's deltas make, and why it ended."""
    message = {"reasoning_content": "", "content": "", "tool_calls": [], "finish": None}
    for choice in (choice for event in events for choice in event["choices"] if choice["index"] == index):
        delta = choice["delta"]
        assert set(delta) <= {"role", "content", "reasoning_content", "tool_calls"}
        for name in ("reasoning_content", "content", "tool_calls"):
            message[name] += delta.get(name) or type(message[name])()
        message["finish"] = choice["finish_reason"] or message["finish"]
    return message
