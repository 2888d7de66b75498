"""Reasoning between two tags at an answer's beginning, as Qwen3, DeepSeek-R1 and Magistral write it. Text only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from shoal.client.spans import Kind, Place, Span, Steps, overlap

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_SOME = "."  # stands for a text that is there already


@dataclass(frozen=True)
class Tags:
    """A model that thinks between `opening` and `closing`. The first may stand in the prompt."""

    opening: str
    closing: str

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that are special tokens of some models and must be seen in the text."""
        return self.opening, self.closing

    def begun(self, prompt: str, continued: str) -> str:
        """A text that brings a reader to where an answer to `prompt` begins. `continued`: what it has by then."""
        if continued:
            thinks = continued.lstrip().startswith(self.opening) and self.closing not in continued
            return self.opening + _SOME if thinks else _SOME
        return self.opening if self._open(prompt) else ""

    def place(self, prompt: str, continued: str) -> Place:
        """Where an answer to `prompt` begins; `continued` as in `begun`."""
        begun = self.begun(prompt, continued)
        if begun.startswith(self.opening):
            return Place.WITHIN
        return Place.BEHIND if begun or prompt.rstrip().endswith(self.closing) else Place.BEFORE

    def ended(self, prompt: str, *, calls: bool) -> str:  # noqa: ARG002 - calls follow the reasoning like any answer
        """What ends the reasoning that `prompt` begins, so that the answer itself comes next; "" if it begins none."""
        if not self._open(prompt):
            return ""
        return f"{'' if prompt.endswith(chr(10)) else chr(10)}\n{self.closing}\n\n"

    def scanner(self, names: Collection[str]) -> TagScanner:  # noqa: ARG002 - see `ended`
        """A reader of one answer."""
        return TagScanner(self)

    def _open(self, prompt: str) -> bool:
        return prompt.rstrip().endswith(self.opening)


class _At(Enum):
    BEGINNING = auto()  # of the answer or, behind the opening tag, of the thought
    THOUGHT = auto()
    BEHIND = auto()  # the closing tag
    ANSWER = auto()


class TagScanner(Steps[_At]):
    """See `Scanner`. An opening tag counts at the beginning only: an answer may speak of tags."""

    def __init__(self, tags: Tags) -> None:
        steps = {
            _At.BEGINNING: self._beginning, _At.THOUGHT: self._thought, _At.BEHIND: self._behind,
            _At.ANSWER: self._answer,
        }  # fmt: skip
        super().__init__(_At.BEGINNING, steps)
        self._tags, self._opened = tags, False

    @property
    def thinking(self) -> bool:
        """See `Scanner`."""
        return self._opened and self._at in (_At.BEGINNING, _At.THOUGHT)

    def _beginning(self, whole: bool) -> Iterator[Span]:
        text = self._held.lstrip()
        if text.startswith(self._tags.opening):
            self._opened = True
            yield self._cut(Kind.MARK, len(self._held) - len(text) + len(self._tags.opening))
        elif whole or not self._tags.opening.startswith(text):
            if self._opened:
                yield self._cut(Kind.MARK, len(self._held) - len(text))
            self._at = _At.THOUGHT if self._opened else _At.ANSWER

    def _thought(self, whole: bool) -> Iterator[Span]:
        thought, end, _ = self._held.partition(self._tags.closing)
        if not end and not whole:
            thought = thought[: len(thought) - overlap(thought, self._tags.closing)]
        space = len(thought) - len(thought.rstrip())
        yield self._cut(Kind.THOUGHT, len(thought) - space)
        if end or whole:
            yield self._cut(Kind.MARK, space + len(end))
        if end:
            self._at = _At.BEHIND

    def _behind(self, _: bool) -> Iterator[Span]:
        text = self._held.lstrip()
        yield self._cut(Kind.MARK, len(self._held) - len(text))
        if text:
            self._at = _At.ANSWER

    def _answer(self, _: bool) -> Iterator[Span]:
        yield self._cut(Kind.SAID, len(self._held))
