"""What a process does once it has loaded all that it will serve from. Knows no model and no device."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress


def settle() -> None:
    """Give back what loading took and freed, and take what is loaded out of the collector's rounds: a full one would
    hold every thread up for milliseconds, in the midst of somebody's step."""
    gc.collect()
    gc.freeze()
    trim()


def trim() -> None:
    """Give freed memory back to the system; takes milliseconds."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # only glibc has it; others return memory by themselves
            ctypes.CDLL(None).malloc_trim(0)
