"""Notices a device that does not come back from a step: its driver waits for ever, and whoever called it with it.

A thread of its own looks, since the event loop may be what waits. It has the engine give up, so that leases end and the
announcement goes; and if the program cannot even leave, it is ended without it: connections close, and clients go
elsewhere.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("shoal.peer")

# By kind of device. Compiling kernels takes up to a minute; a CPU's steps may take long, but come to an end.
LIMITS_S = {"cuda": 180.0, "mps": 180.0}
LEAVE_S = 60.0  # to leave the swarm


class Watched(Protocol):
    """An engine, as far as the watchdog knows it. Both are called from another thread."""

    def under_way_s(self) -> float:
        """Seconds for which the device has been at its present work; 0 if it is at none."""
        ...

    def give_up(self, why: str) -> None:
        """Whoever waits for the device gets an `EngineFault`, now and from now on."""
        ...


class Watchdog:
    """Looks until it is stopped. `last_resort` ends the program in so many seconds if nothing else does."""

    def __init__(self, engine: Watched, limit_s: float, last_resort: Callable[[float], None] | None = None) -> None:
        self._engine, self._limit_s, self._last_resort = engine, limit_s, last_resort or end_in
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="shoal-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(self._limit_s / 8):
            so_long = self._engine.under_way_s()
            if so_long >= self._limit_s:
                why = f"the device has not come back from a step for {so_long:.0f} s"
                logger.error("%s", why)
                self._last_resort(LEAVE_S)
                self._engine.give_up(why)
                return


def end_in(seconds: float) -> None:
    """End the program with status 1 then, whatever it is at: not even Python has to run for it."""
    silence = os.open(os.devnull, os.O_WRONLY)
    faulthandler.dump_traceback_later(seconds, exit=True, file=silence)
