"""Where the user's messages come from: a keyboard with history and editing, or a pipe. Knows no model and no commands.

A message is a line. It goes on behind a `\\` at the line's end, and from one `\"\"\"` to the next.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shoal.blocks.whole_file import write_whole
from shoal.client.cli.surroundings import utf8

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROMPT, MORE = ">>> ", "... "
QUOTES = '"""'
MAX_HISTORY = 1000


class Lines(Protocol):
    """One line at a time, with its prompt. Errors: `EOFError` at the end, `KeyboardInterrupt`."""

    def read(self, prompt: str) -> str: ...
    def remember(self, message: str) -> None: ...


def message(lines: Lines) -> str:
    """The next message, without white space around it. Errors: as `Lines.read`; `CommandError` if it is no text."""
    text = lines.read(PROMPT)
    if text.lstrip().startswith(QUOTES):
        text = text.lstrip().removeprefix(QUOTES)
        while not text.rstrip().endswith(QUOTES):
            text += "\n" + lines.read(MORE)
        text = text.rstrip().removesuffix(QUOTES)
    else:
        while text.endswith("\\"):
            text = text[:-1] + "\n" + lines.read(MORE)
    text = utf8(text.strip())
    lines.remember(text)
    return text


class Pipe:
    """stdin's lines, for scripts."""

    def read(self, prompt: str) -> str:  # noqa: ARG002 - nobody sees one
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def remember(self, message: str) -> None:
        """A script is its own history."""


class Keyboard:
    """Line editing by Python's readline where it is there. `history`: a file that keeps what was typed, for this user's
    eyes only, one JSON string a line: messages may have several lines. `complete`: what a beginning may become."""

    def __init__(self, history: Path, complete: Callable[[str], Sequence[str]]) -> None:
        self._history, self._found = history, list[str]()
        self._complete = complete
        self._readline = _readline()
        if self._readline is not None:
            self._readline.clear_history()
            self._readline.set_auto_history(False)  # a message is one entry, however many lines it took
            for entry in _entries(history):
                self._readline.add_history(entry)
            self._readline.set_completer_delims("")
            self._readline.set_completer(self._completion)
            for binding in ("tab: complete", r'"\e\C-m": "\C-v\C-j"', "set enable-bracketed-paste on"):
                self._readline.parse_and_bind(binding)

    def read(self, prompt: str) -> str:
        if sys.stdout.isatty():
            return input(prompt)
        sys.stderr.write(prompt)  # input() would write it among the results
        sys.stderr.flush()
        return Pipe().read(prompt)

    def remember(self, message: str) -> None:
        """Keep a message, here and for the next start; without a word if the disk takes no more."""
        if not message or self._readline is None:
            return
        count = self._readline.get_current_history_length()
        if count and self._readline.get_history_item(count) == message:
            return
        self._readline.add_history(message)
        with suppress(OSError):
            _append(self._history, message)

    def _completion(self, begun: str, index: int) -> str | None:
        if index == 0:
            self._found = list(self._complete(begun))
        return self._found[index] if index < len(self._found) else None


def state_folder() -> Path:
    """Where this user's history is: `shoal` in XDG_STATE_HOME (if it is an absolute path) or in ~/.local/state."""
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".local" / "state") / "shoal"


def _readline() -> Any:
    """The module, or None."""
    try:
        import readline
    except ImportError:  # not every Python has it; input() then edits as the terminal does
        return None
    return readline


def _append(path: Path, message: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    entries = _entries(path)
    if len(entries) >= 2 * MAX_HISTORY:
        write_whole(path, "".join(json.dumps(entry) + "\n" for entry in entries[-MAX_HISTORY:]).encode())
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps(message) + "\n")


def _entries(path: Path) -> list[str]:
    """What was kept; lines that are no entries are passed over."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, str):
                found.append(entry)
    return found
