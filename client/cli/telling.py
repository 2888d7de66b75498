"""One answer on its way to the terminal: what is said on stdout, what is thought dimmed on stderr. Knows no network."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from shoal.client.cli.terminal import tell, write
from shoal.client.reasoning import Thought

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.client.calls import Call
    from shoal.client.reasoning import AnswerReader


class Telling:
    """`text` and `thought`: the answer and its reasoning so far. `aloud`: write the answer as it comes; `thoughts`: its
    reasoning too, for a person at the terminal that stderr is."""

    def __init__(self, reader: AnswerReader, *, aloud: bool, thoughts: bool) -> None:
        self.text = self.thought = ""
        self._reader, self._aloud, self._thoughts = reader, aloud, thoughts

    def push(self, text: str) -> None:
        """More of the answer's text."""
        self._take(self._reader.push(text))

    def finish(self) -> None:
        """No more comes."""
        self._take(self._reader.finish())
        if self.thought and not self.text:
            self._end_thought("\n")
        if self.text and self._aloud:
            write("\n")

    def _take(self, parts: Sequence[str | Thought | Call]) -> None:
        for part in parts:
            if isinstance(part, Thought):
                self._think(part.text)
            elif isinstance(part, str):
                if self.thought and not self.text:
                    self._end_thought("\n\n")
                self.text += part
                if self._aloud:
                    write(part)

    def _think(self, text: str) -> None:
        if self._thoughts:
            if coloured():
                _hint(dimmed(text))
            elif not self.thought:
                tell("(thinking)")
        self.thought += text

    def _end_thought(self, lines: str) -> None:
        if self._thoughts and coloured():
            _hint(lines)


def coloured() -> bool:
    """Whether stderr takes colours (https://no-color.org)."""
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ


def dimmed(text: str) -> str:
    """A text of less weight, for a terminal."""
    return f"\x1b[2m{text}\x1b[0m"


def _hint(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
