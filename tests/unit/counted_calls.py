"""How much Python some work is: calls counted, which no other load on the machine changes."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def calls_of(work: Callable[[], object]) -> int:
    """Calls of functions, Python's and C's, that `work` makes in this thread."""
    made = 0

    def note(_frame, event, _argument) -> None:
        nonlocal made
        made += event in ("call", "c_call")

    before, collecting = sys.getprofile(), gc.isenabled()
    gc.disable()  # when it runs, and whom it calls, is nothing of the work's
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
        if collecting:
            gc.enable()
    return made
