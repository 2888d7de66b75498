"""The messages of a chat request, checked and made what chat templates take. Pure: data in, data out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.client.api.errors import refuse
from shoal.client.api.fields import Fields, items, mapping, one_of, text

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CALLS = 128
MAX_PARTS = 1024
_ROLES = ("system", "developer", "user", "assistant", "tool")


def read_message(value: Any, name: str) -> dict[str, Any]:
    """One message: `role`, `content` as one string, and what an assistant's or a tool's message has besides."""
    fields = Fields(mapping(value, name), name)
    role = fields.need("role", one_of(*_ROLES))
    found = _READERS.get(role, _said)(fields)
    if author := fields.take("name", text(256), ""):
        found["name"] = author
    fields.end()
    return {"role": "system" if role == "developer" else role, **found}


def _said(fields: Fields) -> dict[str, Any]:
    return {"content": fields.need("content", _content)}


def _answer(fields: Fields) -> dict[str, Any]:
    """What the assistant said before: text, calls, or both."""
    content, refusal = fields.take("content", _content, ""), fields.take("refusal", text(), "")
    calls = list(fields.take("tool_calls", items(_call, MAX_CALLS), ()))
    thought = fields.take("reasoning_content", _thought, "") or fields.take("reasoning", _thought, "")
    # What servers and clients add to answers.
    fields.ignore("annotations", "reasoning", "logprobs", "parsed")
    fields.cannot("give `tool_calls` instead.", "function_call")
    fields.cannot("only text is read here.", "audio")
    found: dict[str, Any] = {"content": content or refusal}
    return {**found, **({"reasoning_content": thought} if thought else {}), **({"tool_calls": calls} if calls else {})}


def _thought(value: Any, _: str) -> str:
    """What the model thought, where a client sends it back as text; other forms are passed over."""
    return value if isinstance(value, str) else ""


def _tool_result(fields: Fields) -> dict[str, Any]:
    return {"tool_call_id": fields.need("tool_call_id", text(256)), **_said(fields)}


_READERS: dict[str, Callable[[Fields], dict[str, Any]]] = {"assistant": _answer, "tool": _tool_result}


def _content(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        refuse(name, f"`{name}` must be a string or a list of text parts.", "invalid_type")
    return "\n".join(items(_part, MAX_PARTS)(value, name))


def _part(value: Any, name: str) -> str:
    fields = Fields(mapping(value, name), name)
    kind = fields.need("type", text(64))
    if kind not in ("text", "refusal"):
        refuse(f"{name}.type", f"`{name}` is of type {kind!r}; only text is read here.")
    found = fields.need(kind, text())
    fields.ignore("cache_control", "prompt_cache_breakpoint")
    fields.end()
    return found


def _call(value: Any, name: str) -> dict[str, Any]:
    fields = Fields(mapping(value, name), name)
    identity = fields.take("id", text(256), "")
    fields.take("type", one_of("function"), "function")
    inner = Fields(fields.need("function", mapping), f"{name}.function")
    called = {"name": inner.need("name", text(64, 1)), "arguments": inner.take("arguments", text(), "{}")}
    inner.ignore("parsed_arguments")  # what OpenAI's own client adds
    inner.end()
    fields.ignore("index")
    fields.end()
    return {"id": identity, "type": "function", "function": called}
