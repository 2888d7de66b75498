"""What a process does once it has loaded all that it will serve from, and at rest. Knows no model and no device."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MADV_DONTNEED = 4


def settle() -> None:
    """Give back what loading took and freed, and take what is loaded out of the collector's rounds: a full one would
    hold every thread up for milliseconds, in the midst of somebody's step."""
    gc.collect()
    gc.freeze()
    trim()


def unsettle() -> None:
    """Have all that `settle` took out of the collector's rounds collected again, now: what was served from is gone."""
    gc.unfreeze()
    gc.collect()


def trim() -> None:
    """Give memory back to the system: what was freed, and libraries' code, which comes back, page by page, when it is
    run again. Takes some 30 ms."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    with suppress(AttributeError):  # only glibc has it; others return memory by themselves
        libc.malloc_trim(0)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with suppress(OSError):
        for start, stop in unwritten(Path("/proc/self/smaps").read_text().splitlines()):
            libc.madvise(start, stop - start, MADV_DONTNEED)


def unwritten(smaps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Addresses `[start, stop)` of shared libraries' parts in memory that are as their files are: nothing in them can
    be written, or was (proc_pid_smaps(5))."""
    start, stop, of_library, resident = 0, 0, False, False
    for line in smaps:
        key, *rest = line.split()
        if not key.endswith(":"):
            start, stop = (int(address, 16) for address in key.split("-"))
            access, name = rest[0], rest[4] if len(rest) > 4 else ""
            of_library = access[1] == "-" and access[3] == "p" and ".so" in name.rpartition("/")[2]
        elif key == "Rss:":
            resident = rest[0] != "0"
        elif key == "Anonymous:":
            of_library = of_library and rest[0] == "0"
        elif key == "VmFlags:" and of_library and resident and "lo" not in rest:
            yield start, stop
