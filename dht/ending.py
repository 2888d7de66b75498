"""How a process ends while threads of it are still at work: without waiting for them. Knows no work and no command."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

LAST_S = 1.0

_left: list[threading.Thread] = []


def leave_behind(thread: threading.Thread) -> None:
    """Nobody needs what this daemon thread does any more: the process may end in the middle of it."""
    _left.append(thread)


def ending(status: int) -> int:
    """The exit status, for the interpreter to end with; the process ends here if a thread was left behind at work.

    What the interpreter takes away as it ends, libraries on such a thread would miss, and crash.
    """
    if any(thread.is_alive() for thread in _left):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # its reader is gone, or it is closed
                stream.flush()
        os._exit(status)
    return status


def end_soon(status: int) -> None:
    """End the process with this status in `LAST_S`, if it has not ended by then, whatever it waits for."""
    timer = threading.Timer(LAST_S, os._exit, (status,))
    timer.daemon = True
    timer.start()
