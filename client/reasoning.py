"""What a model thinks before it answers, told from the answer and from calls while the text comes.

Text only: knows no tokenizer and no session. Which form a model has is read from its chat template.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from shoal.client.calls import Call, CallReader, Style, addressed
from shoal.client.harmony import CHANNEL, MESSAGE, Harmony
from shoal.client.spans import Kind
from shoal.client.text import StopFilter
from shoal.client.thinking import Tags

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from shoal.client.calls import CallFormat
    from shoal.client.spans import Place, Scanner, Span

TAGS = (Tags("<think>", "</think>"), Tags("[THINK]", "[/THINK]"))
HARMONY = Harmony()
BETWEEN = "\n\n"  # messages of one answer


class Reading(Protocol):
    """How a model's answers are parted: `Tags` or `Harmony`."""

    @property
    def marks(self) -> tuple[str, ...]: ...

    def begun(self, prompt: str, continued: str) -> str: ...

    def place(self, prompt: str, continued: str) -> Place: ...

    def ended(self, prompt: str, *, calls: bool) -> str: ...

    def scanner(self, names: Collection[str]) -> Scanner: ...


def reading_of(template: str) -> Reading | None:
    """The form in which a chat template shows reasoning; None where it shows none."""
    if CHANNEL in template and MESSAGE in template:
        return HARMONY
    return next((tags for tags in TAGS if tags.opening in template or tags.closing in template), None)


@dataclass(frozen=True)
class Forethought:
    """What may come before an answer of a certain form: some reasoning, or, if it has `begun`, the rest of it."""

    reading: Reading
    begun: bool


@dataclass(frozen=True)
class Thought:
    """Part of what a model thinks before it answers."""

    text: str


class AnswerReader:
    """Splits an answer that comes in pieces into what is thought, said and called. `begun`: as `ChatPrompt` has it;
    `form`: of the calls of functions `names`, None where calls are not looked for."""

    def __init__(
        self, reading: Reading | None, begun: str = "", form: CallFormat | None = None, names: Collection[str] = ()
    ) -> None:
        self._scanner = _scanner(reading, begun, names if form is not None else ()) if reading is not None else None
        own = form is not None and form.style is not Style.ADDRESSED
        self._calls = CallReader(form, names) if form is not None and own else None
        self._told: set[Kind] = set()
        self._parted = False  # a mark came since the last text
        self._to, self._arguments = "", ""  # of a call that comes

    @property
    def thinking(self) -> bool:
        """Whether what comes next is thought, as far as is known."""
        return self._scanner is not None and self._scanner.thinking

    def push(self, text: str) -> list[str | Thought | Call]:
        """What is sure once `text` has come."""
        if self._scanner is None:
            return list(self._say(text))
        return [part for span in self._scanner.push(text) for part in self._take(span)]

    def finish(self) -> list[str | Thought | Call]:
        """The rest: no more text comes."""
        rest = self._scanner.finish() if self._scanner is not None else []
        found = [part for span in rest for part in self._take(span)]
        return [*found, *self._called(), *(self._calls.finish() if self._calls is not None else [])]

    def _take(self, span: Span) -> Iterator[str | Thought | Call]:
        if span.kind is Kind.CALL:
            self._to, self._arguments = span.to, self._arguments + span.text
            return
        yield from self._called()
        if span.kind is Kind.MARK:
            self._parted = True
            return
        text = BETWEEN + span.text if self._parted and span.kind in self._told else span.text
        self._parted = False
        self._told.add(span.kind)
        yield from [Thought(text)] if span.kind is Kind.THOUGHT else self._say(text)

    def _say(self, text: str) -> Iterator[str | Call]:
        if self._calls is not None:
            yield from self._calls.push(text)
        elif text:
            yield text

    def _called(self) -> Iterator[str | Call]:
        """A call in a message of its own, which has ended; what is none is text."""
        name, body = self._to, self._arguments
        self._to = self._arguments = ""
        if name:
            call = addressed(name, body)
            yield from [call] if call is not None else self._say(body)


class AnswerStops:
    """A `StopFilter` that looks for stop strings in what is said, not in what is thought or marks it. The text passes
    as it came."""

    def __init__(self, reading: Reading, begun: str, stops: Sequence[str]) -> None:
        self._scanner, self._filter = _scanner(reading, begun, ()), StopFilter(stops)

    @property
    def stopped(self) -> bool:
        """See `StopFilter`."""
        return self._filter.stopped

    def push(self, text: str) -> str:
        """See `StopFilter`."""
        return "".join(map(self._pass, self._scanner.push(text)))

    def finish(self) -> str:
        """See `StopFilter`."""
        return "".join(map(self._pass, self._scanner.finish())) + self._filter.finish()

    def _pass(self, span: Span) -> str:
        if span.kind is Kind.SAID:
            return self._filter.push(span.text)
        return "" if self.stopped else self._filter.finish() + span.text


def _scanner(reading: Reading, begun: str, names: Collection[str]) -> Scanner:
    """A scanner that stands where an answer begins."""
    scanner = reading.scanner(names)
    scanner.push(begun)
    return scanner
