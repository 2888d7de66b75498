"""Seconds that run on while the machine sleeps: the clock behind swarm time. Knows no swarm."""

from __future__ import annotations

import time


def steady() -> float:
    """Seconds since some moment before this process began. Where the system has CLOCK_BOOTTIME (Linux) a suspended
    machine's count too; `time.monotonic` leaves them out there."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)
