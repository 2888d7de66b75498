"""What Ctrl-C does while a command is still starting: it ends the process, without a word. Knows no command."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

INTERRUPTED = 130


@contextmanager
def at_once() -> Iterator[None]:
    """Let Ctrl-C end the process at once, for imports and what else leaves nothing to undo.

    A `KeyboardInterrupt` in the middle of a library's import would be shown as that library's fault, or be caught by
    it. Where Ctrl-C is ignored or somebody listens to it already, it stays so.
    """
    listened = signal.getsignal(signal.SIGINT)
    if listened is not signal.default_int_handler:
        yield
        return
    try:
        signal.signal(signal.SIGINT, _leave)
    except ValueError:  # signals are the main thread's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, listened)


def _leave(*_: object) -> NoReturn:
    os._exit(INTERRUPTED)
