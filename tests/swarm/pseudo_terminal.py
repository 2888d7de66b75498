"""A `shoal` command at a terminal of its own: keys in, the screen's characters out, by the standard library's pty."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Self

from tests.forks.popen import own_terminal

if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping, Sequence

PATIENCE_S = 60.0
SHOW_CURSOR = "\x1b[?25h"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x1b[=>]")


class Terminal:
    """Use as `with Terminal(argv) as terminal:`; what still runs at the end is killed."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], size: tuple[int, int] = (30, 120)) -> None:
        self.screen = ""  # all that was ever written, with its escapes
        self._read_to = 0  # of the characters without escapes
        self._here, there = pty.openpty()
        termios.tcsetwinsize(there, size)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shoal.client.cli.main", *argv],
            stdin=there, stdout=there, stderr=there, start_new_session=True, preexec_fn=own_terminal,
            env={**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **environment},
        )  # fmt: skip
        os.close(there)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait()
        self.close()

    def close(self) -> None:
        """As when the terminal's window is closed."""
        if self._here >= 0:
            os.close(self._here)
            self._here = -1

    def type(self, keys: str) -> None:
        """Press keys; a line ends with "\\r" or is sent by `enter`."""
        os.write(self._here, keys.encode())

    def enter(self, line: str) -> None:
        """Type a line."""
        self.type(f"{line}\r")

    def interrupt(self) -> None:
        """Press Ctrl-C as fast as a person does: input() loses one that comes before it waits, as CPython's readline
        module looks for signals only where they interrupt its select()."""
        time.sleep(0.3)
        self.type("\x03")

    def until(self, words: str, timeout_s: float = PATIENCE_S) -> str:
        """Wait for words after those found last; what was written up to their end, without escapes."""
        end = time.monotonic() + timeout_s
        while (at := (text := ESCAPES.sub("", self.screen)).find(words, self._read_to)) < 0:
            if not self._more(end - time.monotonic()):
                raise AssertionError(f"no {words!r} in {text[self._read_to :][-3000:]!r}")
        since, self._read_to = self._read_to, at + len(words)
        return text[since : self._read_to]

    def until_again(self, escape: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the command sends an escape sequence once more, such as that which shows the cursor."""
        end, before = time.monotonic() + timeout_s, self.screen.count(escape)
        while self.screen.count(escape) == before:
            if not self._more(end - time.monotonic()):
                raise AssertionError(f"no {escape!r} in {self.screen[-3000:]!r}")

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to the process itself."""
        self.process.send_signal(number)

    def ended(self, timeout_s: float = PATIENCE_S) -> int:
        """The exit status, once everything it wrote was read."""
        end = time.monotonic() + timeout_s
        while self._more(end - time.monotonic()):
            pass
        return self.process.wait(max(0.1, end - time.monotonic()))

    def _more(self, timeout_s: float) -> bool:
        """Whether something came before time ran out or the process left."""
        ready, _, _ = select.select([self._here], [], [], max(0.0, timeout_s))
        try:
            data = os.read(self._here, 65536) if ready else b""
        except OSError:  # Linux says so when the last holder of the other end is gone
            data = b""
        self.screen += data.decode(errors="replace")
        return bool(data)
