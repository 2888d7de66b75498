"""Channels of an answer in the Harmony format (OpenAI's gpt-oss): reasoning, what is said, and calls. Text only.

A message is a header, `<|message|>`, and a text that one of three marks ends. The header names the channel and, of a
call, the function: `<|channel|>commentary to=functions.NAME <|constrain|>json`, or `to=` before the channel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from shoal.client.spans import Kind, Place, Span, Steps, overlap

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
END = "<|end|>"
ENDS = (END, "<|return|>", "<|call|>")
FINAL = f"{CHANNEL}final{MESSAGE}"
_ASSISTANT = f"{START}assistant"
_HEADS = (START, CHANNEL, CONSTRAIN, MESSAGE, "to=")
BREAKS = (*ENDS, START, CHANNEL)  # a header may follow a text that nothing ended
_FUNCTIONS = "functions."


@dataclass(frozen=True)
class Harmony:
    """A model that writes in channels."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that are special tokens and must be seen in the text."""
        return START, CHANNEL, CONSTRAIN, MESSAGE, *ENDS

    def begun(self, prompt: str, continued: str) -> str:  # noqa: ARG002 - the prompt says it all
        """A text that brings a reader to where an answer to `prompt` begins."""
        _, start, answer = prompt.rpartition(_ASSISTANT)
        header, message, _ = answer.rpartition(MESSAGE)
        return header + message if message else answer if start else ""

    def place(self, prompt: str, continued: str) -> Place:
        """Where an answer to `prompt` begins; `continued` as in `begun`."""
        if prompt.endswith(_ASSISTANT):
            return Place.BEFORE
        scanner = self.scanner(())
        scanner.push(self.begun(prompt, continued))
        return Place.WITHIN if scanner.thinking else Place.BEHIND

    def ended(self, prompt: str, *, calls: bool) -> str:
        """What ends the reasoning before it begins, so that the answer itself comes next; "" if `prompt` is in one
        already, or if it may be one of `calls`, which have a channel of their own."""
        return FINAL if prompt.endswith(_ASSISTANT) and not calls else ""

    def scanner(self, names: Collection[str]) -> ChannelScanner:
        """A reader of one answer that may call the functions `names`."""
        return ChannelScanner(names)


class _At(Enum):
    BETWEEN = auto()  # messages, or before the first
    HEADER = auto()
    TEXT = auto()


class ChannelScanner(Steps[_At]):
    """See `Scanner`. Text without a header is said; a header that does not end is a mark."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(_At.BETWEEN, {_At.BETWEEN: self._between, _At.HEADER: self._header, _At.TEXT: self._text})
        self._names = names
        self._kind, self._to = Kind.SAID, ""

    @property
    def thinking(self) -> bool:
        """See `Scanner`."""
        return self._at is _At.TEXT and self._kind is Kind.THOUGHT

    def _between(self, whole: bool) -> Iterator[Span]:
        text = self._held.lstrip()
        marks = (*_HEADS, *ENDS)
        if text.startswith(ENDS):
            end = next(mark for mark in ENDS if text.startswith(mark))
            yield self._cut(Kind.MARK, len(self._held) - len(text) + len(end))
        elif text.startswith(_HEADS):
            self._at = _At.HEADER
        elif whole and any(mark.startswith(text) for mark in marks) and (not text or text.startswith("<|")):
            yield self._cut(Kind.MARK, len(self._held))  # it was cut off within a mark
        elif whole or not any(mark.startswith(text) for mark in marks):
            self._at, self._kind, self._to = _At.TEXT, Kind.SAID, ""

    def _header(self, whole: bool) -> Iterator[Span]:
        header, end, _ = self._held.partition(MESSAGE)
        if end:
            self._at = _At.TEXT
            self._kind, self._to = self._addressed(header)
            yield self._cut(Kind.MARK, len(header) + len(end))
        elif whole:
            yield self._cut(Kind.MARK, len(header))

    def _text(self, whole: bool) -> Iterator[Span]:
        end = min((at for mark in BREAKS if (at := self._held.find(mark)) >= 0), default=-1)
        if end >= 0:
            yield self._cut(self._kind, end, self._to)
            self._at = _At.BETWEEN
        else:
            unsure = 0 if whole else max(overlap(self._held, mark) for mark in BREAKS)
            yield self._cut(self._kind, len(self._held) - unsure, self._to)

    def _addressed(self, header: str) -> tuple[Kind, str]:
        """What a header's message is for, and whom a call calls. A message to what is no function of anybody's, such as
        a browser, is part of the reasoning; one without an address in the commentary is meant to be read."""
        channel = re.findall(r"<\|channel\|>\s*(\w+)", header)
        to = re.search(r"\bto=([^\s<]+)", header)
        name = to[1].removeprefix(_FUNCTIONS) if to else ""
        if name in self._names:
            return Kind.CALL, name
        thought = channel[-1:] == ["analysis"] or (name and to and not to[1].startswith(_FUNCTIONS))
        return (Kind.THOUGHT if thought and channel[-1:] != ["final"] else Kind.SAID), ""
