"""Conversations as a model wants to read them: messages and tools to token ids through its own chat template.

Knows no swarm and no HTTP. A model without a template was not made for conversations, it continues texts. So that is
what it does here: the messages follow one another, each but an answer on a new line and without the names of roles, and
the answer goes on where the last one ends. A model whose template has no place for tools is told of them in words.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from shoal.client.calls import HERMES, CallFormat, Style, format_of
from shoal.client.reasoning import AnswerStops, Forethought, reading_of
from shoal.client.spans import Place
from shoal.client.text import StopFilter, special_ids

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from shoal.client.generation import Completion, GenerationOptions
    from shoal.client.local import ClientModel
    from shoal.client.reasoning import Reading

REMEMBERED = 256  # answers whose tokens are kept
THOUGHT = "reasoning_content"  # of an assistant's message
_THOUGHT_NAMES = (THOUGHT, "thinking", "reasoning")  # what templates call it
Message = dict[str, Any]


class ChatError(ValueError):
    """A conversation that the model cannot be given; the message is one sentence for the user."""


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation up to where the answer begins. `begun`: what of the answer's marks it has already, for who reads
    the answer. `thought`: what may come before an answer of a form that was asked for."""

    text: str
    token_ids: tuple[int, ...]
    begun: str = ""
    thought: Forethought | None = None


REFUSALS = (TemplateError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)


class Chat:
    """The conversations of one model. `calls`: how it writes calls of tools; `reading`: its reasoning, if it does."""

    def __init__(self, model: ClientModel) -> None:
        if model.tokenizer is None:
            raise ChatError("This model has no tokenizer that can be read, so it cannot chat.")
        self._tokenizer = model.tokenizer
        self._eos = model.eos
        self._texts: OrderedDict[str, tuple[int, ...]] = OrderedDict()  # conversations up to an answer's end
        template = self._template()
        self._takes_tools = "tools" in template
        self.calls: CallFormat = format_of(template) if self._takes_tools else HERMES
        self.reading: Reading | None = reading_of(template)
        self._thoughts = [name for name in _THOUGHT_NAMES if re.search(rf"\b{name}\b", template)]

    @property
    def shown(self) -> frozenset[int]:
        """Special tokens that belong to an answer's text: they mark calls or reasoning (`GenerationOptions.shown`)."""
        return self._special([*self.calls.marks, *(self.reading.marks if self.reading is not None else ())])

    def options(self, options: GenerationOptions, prompt: ChatPrompt, *, calls: bool) -> GenerationOptions:
        """Options by which the answer to `prompt` can be read; `calls`: those in it too. Stop strings are looked for in
        what is said, not in reasoning."""
        if self.reading is None:
            return replace(options, shown=self.shown) if calls else options
        shown = self.shown if calls else self._special(self.reading.marks)
        stops = partial(AnswerStops, self.reading, prompt.begun) if options.stops else StopFilter
        return replace(options, shown=shown, stops_by=stops)

    @property
    def templated(self) -> bool:
        """Whether the model has a chat template of its own."""
        return bool(self._template())

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, continues: bool = False,
        options: Mapping[str, Any] | None = None, forced: bool = False,
    ) -> ChatPrompt:  # fmt: skip
        """What the model reads before it answers. `messages` and `tools` as OpenAI's API has them, contents as strings.
        `continues`: the last message is the beginning of the answer. `options`: further names for the template.
        `forced`: a grammar says what the answer is, or a call of `tools` if there are any; reasoning comes before it,
        unless the template's `options` turn that off.

        Errors: `ChatError`.
        """
        if not messages:
            raise ChatError("The conversation is empty; give at least one message.")
        read = [self._readable(message) for message in messages]
        if not self._takes_tools:
            read = _told_in_words(read, tools)
        text = self._render(read, tools, continues, options or {}) if self.templated else _plain(read)
        if self.reading is None:
            return ChatPrompt(text, self._tokens(text))
        silent, continued = _silent(options or {}), messages[-1].get("content") or "" if continues else ""
        text += self.reading.ended(text, calls=bool(tools)) if forced and silent else ""
        place = self.reading.place(text, continued)
        thinks = forced and (place is Place.WITHIN or (place is Place.BEFORE and not silent))
        thought = Forethought(self.reading, begun=place is Place.WITHIN) if thinks else None
        return ChatPrompt(text, self._tokens(text), self.reading.begun(text, continued), thought)

    def remember(self, prompt: ChatPrompt, answer: Completion) -> None:
        """Keep an answer's own tokens for when the conversation goes on: its text, cut into tokens again, might give
        others, for which the peers hold no KV. An answer that was cut off at a stop string is not kept."""
        if answer.finish in ("", "stop") or not answer.text:
            return
        ids = answer.token_ids[:-1] if answer.token_ids[-1] in self._eos else answer.token_ids
        self._texts[prompt.text + answer.text] = (*prompt.token_ids, *ids)
        self._texts.move_to_end(prompt.text + answer.text)
        if len(self._texts) > REMEMBERED:
            self._texts.popitem(last=False)

    def _template(self) -> str:
        """The text of the template, or of all of them where there are several; "" without one."""
        found = getattr(self._tokenizer, "chat_template", None) or ""
        return found if isinstance(found, str) else "\n".join(map(str, found.values()))

    def _render(
        self, messages: list[Message], tools: Sequence[Mapping[str, Any]], continues: bool, options: Mapping[str, Any]
    ) -> str:
        given = {"tools": list(tools)} if tools and self._takes_tools else {}
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=not continues, continue_final_message=continues,
                **given, **options,
            )  # fmt: skip
        except REFUSALS as error:
            raise ChatError(f"The model's chat template refuses this conversation: {_line(error)}") from error
        return text

    def _tokens(self, text: str) -> tuple[int, ...]:
        """Token ids of a text; those of an earlier answer in it are the ones that the model wrote."""
        plain = self._encode(text)
        known = max((said for said in self._texts if text.startswith(said)), key=len, default="")
        if not known:
            return plain
        self._texts.move_to_end(known)
        joined = (*self._texts[known], *self._encode(text[len(known) :], first=False))
        same = self._tokenizer.decode(joined) == self._tokenizer.decode(plain)  # some tokenizers change what begins
        return joined if same else plain

    def _readable(self, message: Message) -> Message:
        """Templates expect a text, a call's arguments as an object, and reasoning under a name of theirs."""
        calls, thought = message.get("tool_calls") or (), message.get(THOUGHT)
        read = {**message, "content": message.get("content") or ""}
        read.pop(THOUGHT, None)
        # gpt-oss' template takes reasoning or a text before a call, and refuses both.
        if thought and not (calls and read["content"] and self.calls.style is Style.ADDRESSED):
            read.update(dict.fromkeys(self._thoughts, thought))
        return {**read, "tool_calls": [_read_call(call) for call in calls]} if calls else read

    def _special(self, marks: Iterable[str]) -> frozenset[int]:
        """The special tokens that are `marks`."""
        ids = {mark: self._tokenizer.convert_tokens_to_ids(mark) for mark in marks}  # of others, that of <unk>
        own = {number for mark, number in ids.items() if self._tokenizer.convert_ids_to_tokens(number or 0) == mark}
        return frozenset(own & special_ids(self._tokenizer))

    def _encode(self, text: str, *, first: bool = True) -> tuple[int, ...]:
        """A template writes the special tokens itself."""
        special = first and not self.templated
        return tuple(self._tokenizer(text, add_special_tokens=special)["input_ids"])


def _silent(options: Mapping[str, Any]) -> bool:
    """Whether a template is told that the model is not to think; some cannot be told."""
    off = any(options.get(name) is False for name in ("enable_thinking", "thinking"))
    return off or options.get("reasoning_effort") == "none"


def _read_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except (ValueError, TypeError):
        return dict(call)
    return {**call, "function": {**function, "arguments": arguments if isinstance(arguments, dict) else {}}}


# -- where there is no template, or none that knows tools ----------------------------------------------------------


def _told_in_words(messages: list[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Tools, calls and their results as texts."""
    told = [_in_words(message) for message in messages]
    if not tools:
        return told
    listed = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    text = (
        f"These functions can be called:\n{listed}\n"
        'To call one, write <tool_call>\n{"name": NAME, "arguments": {...}}\n</tool_call>'
    )
    if told[0]["role"] == "system":
        return [{**told[0], "content": f"{told[0]['content']}\n\n{text}".lstrip()}, *told[1:]]
    return [{"role": "system", "content": text}, *told]


def _in_words(message: Message) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    functions = (call["function"] for call in message.get("tool_calls", ()))
    asked = (
        json.dumps({"name": each["name"], "arguments": each.get("arguments") or {}}, ensure_ascii=False)
        for each in functions
    )
    calls = (f"<tool_call>\n{call}\n</tool_call>" for call in asked)
    content = "\n".join(chain([message["content"]] if message["content"] else [], calls))
    thought = {name: message[name] for name in _THOUGHT_NAMES if name in message}
    return {**thought, "role": message["role"], "content": content}


def _plain(messages: Sequence[Message]) -> str:
    """See the module's first lines."""
    text = ""
    for message in messages:
        begins_line = message["role"] == "assistant" or not text or text.endswith("\n")
        text += message["content"] if begins_line else "\n" + message["content"]
    return text


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
