"""Calls of tools in a model's text: in which form a model writes them, and how they are read while the text comes.

Text only: knows no tokenizer, no grammar library and no session. The forms are those of the models' own templates:
Hermes (Nous Research, also Qwen's), Llama 3's JSON, Mistral's, old and new, and messages of gpt-oss' Harmony format,
which `client.reasoning` reads.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from shoal.client.harmony import CHANNEL, MESSAGE
from shoal.client.spans import overlap

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


class Style(Enum):
    """What surrounds a call."""

    TAGGED = auto()  # each between two tags: {"name": NAME, "arguments": {...}}
    LISTED = auto()  # behind one tag, a JSON list of such objects to the end
    NAMED = auto()  # each behind a tag: NAME, another tag, {...}
    BARE = auto()  # the whole text, or what follows a tag: {"name": NAME, "parameters": {...}}, with ; between
    ADDRESSED = auto()  # each a message to the function NAME: {...}


@dataclass(frozen=True)
class CallFormat:
    """`start` begins calls; `end` ends one call, or its name; `arguments`: the key of a call's arguments."""

    style: Style
    start: str
    end: str = ""
    arguments: str = "arguments"

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that are special tokens of some models and must be seen in the text."""
        return tuple(mark for mark in (self.start, self.end) if mark)


HERMES = CallFormat(Style.TAGGED, "<tool_call>", "</tool_call>")
MISTRAL = CallFormat(Style.LISTED, "[TOOL_CALLS]")
MISTRAL_NAMED = CallFormat(Style.NAMED, "[TOOL_CALLS]", "[ARGS]")
LLAMA = CallFormat(Style.BARE, "<|python_tag|>", arguments="parameters")
HARMONY_CALLS = CallFormat(Style.ADDRESSED, CHANNEL, MESSAGE)


def format_of(template: str) -> CallFormat:
    """The form in which a chat template shows calls; Hermes' where it is none of the others."""
    if CHANNEL in template and MESSAGE in template:
        return HARMONY_CALLS
    if "[TOOL_CALLS]" in template:
        return MISTRAL_NAMED if "[ARGS]" in template else MISTRAL
    if HERMES.start not in template and (LLAMA.start in template or '"parameters": ' in template):
        return LLAMA
    return HERMES


def new_id(form: CallFormat) -> str:
    """A name for a call by which its result is told. Mistral's templates refuse any but 9 letters and digits."""
    digits = uuid.uuid4().hex
    return digits[:9] if form.style in (Style.LISTED, Style.NAMED) else f"call_{digits[:24]}"


@dataclass(frozen=True)
class Call:
    """A function's name and its arguments as the text of a JSON object."""

    name: str
    arguments: str


def addressed(name: str, arguments: str) -> Call | None:
    """The call that a message to a function is; None if its text is no JSON object."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    return Call(name, _text_of(value)) if isinstance(value, dict) else None


class CallReader:
    """Splits a text that comes in pieces into what is said and what is called. Calls are told when they are whole; what
    looks like one and is none, or calls nothing of `names`, is text. White space around calls belongs to nobody."""

    def __init__(self, form: CallFormat, names: Collection[str]) -> None:
        self.called = False
        self._form, self._names = form, names
        self._held = ""  # not told yet
        self._inside = False  # behind the mark that begins a call
        self._space = ""  # white space before that mark
        self._said = False  # some text was told

    def push(self, text: str) -> list[str | Call]:
        """What is sure once `text` has come."""
        self._held += text
        return list(self._tell(whole=False))

    def finish(self) -> list[str | Call]:
        """The rest: no more text comes."""
        return list(self._tell(whole=True))

    def _tell(self, *, whole: bool) -> Iterator[str | Call]:
        while self._held:
            if self._bare():
                yield from self._rest() if whole else ()
                return
            if not self._inside:
                yield from self._text(whole=whole)
                if not self._inside:
                    return
            if self._form.style is not Style.TAGGED:
                yield from self._rest() if whole else ()
                return
            body, end, rest = self._held.partition(self._form.end)
            if not end and not whole:
                return
            self._inside, self._held = False, rest
            yield from self._calls(body, self._form.start + body + end)

    def _bare(self) -> bool:
        """The text may be nothing but calls."""
        begins = self._form.style is Style.BARE and not self._said and not self._inside
        return begins and self._held.lstrip().startswith("{")

    def _text(self, *, whole: bool) -> Iterator[str]:
        """Text up to where a call begins, or may begin."""
        text, start, rest = self._held.partition(self._form.start)
        if start:
            said = text.rstrip()
            self._inside, self._held, self._space = True, rest, text[len(said) :]
            if said:
                yield from self._say(said)
            return
        sure = text if whole else text[: len(text) - overlap(text, self._form.start)]
        if not whole:
            sure = sure.rstrip()
        self._held = text[len(sure) :]
        if sure and not (whole and self.called and not sure.strip()):
            yield from self._say(sure)

    def _say(self, text: str) -> Iterator[str]:
        self._said = True
        yield text

    def _rest(self) -> Iterator[str | Call]:
        """All that is held, at the end."""
        body, mark = self._held, self._form.start if self._inside else ""
        self._held, self._inside = "", False
        self._space = self._space if mark else ""
        yield from self._calls(body, mark + body)

    def _calls(self, body: str, shown: str) -> Iterator[str | Call]:
        calls = list(_read(self._form, body))
        if not calls or any(call.name not in self._names for call in calls):
            yield from self._say(self._space + shown)
            return
        self.called = True
        yield from calls


def _read(form: CallFormat, body: str) -> Iterator[Call]:
    """The calls that `body` is; none if it is anything else as well."""
    try:
        if form.style is Style.NAMED:
            calls = [_named(form, part) for part in body.split(form.start)]
        else:
            found = list(_objects(body))
            lists = len(found) == 1 and isinstance(found[0], list)  # Mistral's form; other models slip into it
            calls = [_call(each) for each in (found[0] if lists else found)]
    except (ValueError, TypeError, KeyError, RecursionError):
        return
    yield from calls


def _named(form: CallFormat, part: str) -> Call:
    name, _, arguments = part.partition(form.end)
    value = json.loads(arguments)
    if not isinstance(value, dict):
        raise TypeError("arguments are an object")
    return Call(name.partition("[CALL_ID]")[0].strip(), _text_of(value))


def _objects(text: str) -> Iterator[Any]:
    """JSON values one behind the other, with ; or white space between."""
    decoder, at = json.JSONDecoder(), 0
    while (at := at + len(text[at:]) - len(text[at:].lstrip(" \t\r\n;"))) < len(text):
        value, at = decoder.raw_decode(text, at)
        yield value


def _call(value: Any) -> Call:
    if not isinstance(value, dict):
        raise TypeError("a call is an object")
    given = value.get("arguments", value.get("parameters", {}))
    arguments = json.loads(given) if isinstance(given, str) else given
    if not isinstance(value["name"], str) or not isinstance(arguments, dict):
        raise TypeError("a call has a name and an object of arguments")
    return Call(value["name"], _text_of(arguments))


def _text_of(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)
