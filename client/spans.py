"""Parts of an answer's raw text by what they are for: thought, said, called, or mere marks. Text only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

A = TypeVar("A", bound=Enum)


class Kind(Enum):
    """What a part is for."""

    THOUGHT = auto()
    SAID = auto()
    CALL = auto()  # a call's arguments
    MARK = auto()  # for nobody to see: marks, and the white space around them


@dataclass(frozen=True)
class Span:
    """Part of a text as it came. `to`: the name of the function, if it is of a call."""

    kind: Kind
    text: str
    to: str = ""


class Place(Enum):
    """Where an answer stands with its reasoning."""

    BEFORE = auto()  # it may begin with some
    WITHIN = auto()
    BEHIND = auto()  # none comes any more


class Scanner(Protocol):
    """Parts a text that comes in pieces: all spans, one behind the other, are the text."""

    @property
    def thinking(self) -> bool:
        """Whether what comes next is thought, as far as is known."""

    def push(self, text: str) -> list[Span]:
        """What is sure once `text` has come."""

    def finish(self) -> list[Span]:
        """The rest: no more text comes."""


class Steps(Generic[A]):
    """A `Scanner` that stands at one of several places: `steps` gives for each what it makes of the text that is held,
    told whether that is all."""

    def __init__(self, at: A, steps: Mapping[A, Callable[[bool], Iterator[Span]]]) -> None:
        self._at, self._steps, self._held = at, steps, ""

    def push(self, text: str) -> list[Span]:
        """See `Scanner`."""
        self._held += text
        return list(self._scan(whole=False))

    def finish(self) -> list[Span]:
        """See `Scanner`."""
        return list(self._scan(whole=True))

    def _scan(self, *, whole: bool) -> Iterator[Span]:
        while self._held:
            before = len(self._held), self._at
            yield from (span for span in self._steps[self._at](whole) if span.text)
            if (len(self._held), self._at) == before:
                return

    def _cut(self, kind: Kind, length: int, to: str = "") -> Span:
        span, self._held = Span(kind, self._held[:length], to), self._held[length:]
        return span


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark` without being all of it."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
