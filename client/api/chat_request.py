"""A request to /v1/chat/completions, read and checked. Pure: data in, data out; knows no model and no template."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shoal.client.api.errors import refuse
from shoal.client.api.fields import Fields, flag, items, mapping, one_of, text, whole
from shoal.client.api.messages import read_message
from shoal.client.api.wishes import MAX_TOKENS, MAX_TOP_LOGPROBS, Wishes, read_wishes

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_MESSAGES = 4096
MAX_TOOLS = 128
# What transformers' `apply_chat_template` takes for itself: a template from a stranger would be a program of theirs.
RESERVED = frozenset({
    "self", "messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "sanitize_control_tokens", "tokenizer_kwargs", "processor_kwargs",
    "load_audio_from_video",
})  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class ChatRequest:
    """`messages` and `tools` as chat templates take them. `tool_choice`: none, auto, required or a function's name in
    `named_tool`. `continues`: the last message is the assistant's and is to be gone on with."""

    messages: list[dict[str, Any]]
    wishes: Wishes
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: str = "none"
    named_tool: str | None = None
    parallel_tools: bool = True
    continues: bool = False
    template_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def forced(self) -> bool:
        """Whether a grammar says what the answer begins with."""
        return self.wishes.shape is not None or self.tool_choice == "required"


def read_chat(given: Mapping[str, Any]) -> ChatRequest:
    """Check a request. Errors: `ApiError`."""
    fields = Fields(given)
    messages = list(fields.need("messages", items(read_message, MAX_MESSAGES, 1)))
    wishes = read_wishes(fields, _max_tokens(fields), _top_logprobs(fields))
    tools = list(fields.take("tools", items(_tool, MAX_TOOLS), ()))
    choice, named = _tool_choice(fields, tools)
    request = ChatRequest(
        messages, wishes, tools, choice, named,
        parallel_tools=fields.take("parallel_tool_calls", flag, default=True),
        continues=_continues(fields, messages),
        template_options=_template_options(fields),
    )  # fmt: skip
    fields.take("modalities", items(one_of("text"), 1), ())
    fields.take("verbosity", one_of("low", "medium", "high"), "medium")
    fields.cannot("give `tools` and `tool_choice` instead.", "functions", "function_call")
    fields.cannot("this server has no such thing.", "audio", "web_search_options", "moderation", "documents")
    fields.cannot("the model's own template is used.", "chat_template")
    fields.end()
    if wishes.shape is not None and choice == "required":
        refuse("response_format", "`response_format` does not go with a `tool_choice` that asks for a call.")
    if wishes.shape is not None and choice == "auto" and wishes.shape.kind not in ("json_schema", "json_object"):
        refuse("response_format", 'Only an answer in JSON goes with `tools`; set `tool_choice` to "none".')
    return request


def _max_tokens(fields: Fields) -> int | None:
    newer = fields.take("max_completion_tokens", whole(1, MAX_TOKENS), None)
    older = fields.take("max_tokens", whole(1, MAX_TOKENS), None)
    if newer is not None and older is not None and newer != older:
        refuse("max_tokens", "`max_tokens` and `max_completion_tokens` differ; give one of them.")
    return newer if newer is not None else older


def _top_logprobs(fields: Fields) -> int | None:
    wanted = fields.take("logprobs", flag, default=False)
    top = fields.take("top_logprobs", whole(0, MAX_TOP_LOGPROBS), None)
    if top and not wanted:
        refuse("top_logprobs", "`top_logprobs` needs `logprobs: true`.")
    return (top or 0) if wanted else None


def _continues(fields: Fields, messages: list[dict[str, Any]]) -> bool:
    continues = fields.take("continue_final_message", flag, default=False)
    adds = fields.take("add_generation_prompt", flag, default=not continues)
    if continues == adds:
        refuse("add_generation_prompt", "One of `add_generation_prompt` and `continue_final_message` must be true.")
    if continues and messages[-1]["role"] != "assistant":
        refuse("continue_final_message", "`continue_final_message` needs an assistant's message at the end.")
    return continues


def _template_options(fields: Fields) -> dict[str, Any]:
    """What templates may know of: reasoning models read some of these."""
    options: dict[str, Any] = dict(fields.take("chat_template_kwargs", mapping, {}))
    for name in options:
        if not name.isidentifier() or name in RESERVED:
            refuse("chat_template_kwargs", f"`chat_template_kwargs` must not set {name[:40]!r}.")
    effort = fields.take("reasoning_effort", one_of("none", "minimal", "low", "medium", "high", "xhigh"), None)
    return {"reasoning_effort": effort, **options} if effort else options


# -- tools -------------------------------------------------------------------------------------------------------


def _tool(value: Any, name: str) -> dict[str, Any]:
    fields = Fields(mapping(value, name), name)
    fields.need("type", one_of("function"))
    inner = Fields(fields.need("function", mapping), f"{name}.function")
    fields.end()
    function: dict[str, Any] = {"name": inner.need("name", function_name)}
    if description := inner.take("description", text(), ""):
        function["description"] = description
    function["parameters"] = inner.take("parameters", mapping, {"type": "object", "properties": {}})
    inner.take("strict", flag, default=False)
    inner.end()
    return {"type": "function", "function": function}


def function_name(value: Any, name: str) -> str:
    """A name that a model can call."""
    found = text(64, 1)(value, name)
    if not _NAME.fullmatch(found):
        refuse(name, f"`{name}` may hold letters, digits, dots, dashes and underscores only.")
    return found


def _tool_choice(fields: Fields, tools: list[dict[str, Any]]) -> tuple[str, str | None]:
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) != len(names):
        refuse("tools", "Two of the `tools` have the same name.")
    given: Any = fields.take("tool_choice", lambda value, _: value, "auto" if tools else "none")
    if isinstance(given, dict):
        named = _named(given)
        if named not in names:
            refuse("tool_choice", f"`tool_choice` names {named!r}, which is none of the `tools`.")
        return "required", named
    choice = one_of("none", "auto", "required")(given, "tool_choice")
    if choice != "none" and not tools:
        refuse("tool_choice", "`tool_choice` needs `tools`.")
    return choice, None


def _named(given: dict[str, Any]) -> str:
    fields = Fields(given, "tool_choice")
    fields.need("type", one_of("function"))
    inner = Fields(fields.need("function", mapping), "tool_choice.function")
    name = inner.need("name", function_name)
    inner.end()
    fields.end()
    return name
