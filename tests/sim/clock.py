"""An asyncio event loop on virtual time: it never sleeps, it jumps to the next timer. Knows no network.

Whatever runs in a context with `MACHINE` set runs on that machine, which may be stopped and go on later.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import math
import selectors
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


MOST_TURNS = 2_000_000
MACHINE = contextvars.ContextVar("MACHINE", default="")


def on_machine(name: str) -> contextvars.Context:
    """A context for what runs on a machine."""
    context = contextvars.copy_context()
    context.run(MACHINE.set, name)
    return context


class Deadlock(Exception):
    """Nothing is ready and no timer is set, or the loop turns and turns: the simulation would never end."""


class _Jump(selectors.SelectSelector):
    """A selector that moves the loop's clock instead of waiting."""

    loop: VirtualLoop
    turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("every task waits and no timer is set")
        self.turns += 1
        if self.turns > MOST_TURNS:
            raise Deadlock(f"the loop has turned {MOST_TURNS} times by {self.loop.now:g} s")
        self.loop.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` is virtual; callbacks run in the order in which they fall due. `now`: the time of the world; a machine
    whose clock once stood still is behind it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._stopped: dict[str, tuple[float, list[asyncio.Handle]]] = {}  # since when, and what waits there
        self._behind: dict[str, float] = {}
        jump = _Jump()
        jump.loop = self
        super().__init__(jump)

    def time(self) -> float:
        """Virtual seconds since the loop was made, by the clock of the machine that asks."""
        return self.now - self._behind.get(MACHINE.get(), 0.0) if self._behind else self.now

    def stop_machine(self, name: str) -> None:
        """Nothing runs there any more: neither what is ready nor timers."""
        if name in self._stopped:
            return
        theirs = [timer for timer in self._scheduled if timer._context.get(MACHINE) == name]
        self._scheduled = [timer for timer in self._scheduled if timer._context.get(MACHINE) != name]
        heapq.heapify(self._scheduled)
        for timer in theirs:
            timer._scheduled = False
        self._stopped[name] = self.now, sorted(theirs)

    def continue_machine(self, name: str, *, clock_stood: bool = False) -> None:
        """It goes on, with all timers that fell due meanwhile. `clock_stood`: for its clock, no time has passed."""
        since, waiting = self._stopped.pop(name, (self.now, []))
        late_s = self.now - since if clock_stood else 0.0
        if late_s:
            self._behind[name] = self._behind.get(name, 0.0) + late_s
        for handle in waiting:
            if handle.cancelled():
                continue
            if isinstance(handle, asyncio.TimerHandle):
                handle._when = _later(handle._when, late_s)
                handle._scheduled = True
                heapq.heappush(self._scheduled, handle)
            else:
                self._ready.append(handle)

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """See asyncio; on a machine that is stopped, once it goes on."""
        if self._stopped:
            name = MACHINE.get() if context is None else context.get(MACHINE, "")
            if name in self._stopped:
                handle = asyncio.Handle(callback, args, self, context)
                self._stopped[name][1].append(handle)
                return handle
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio; `when` by the clock of the machine where it runs."""
        if not self._behind and not self._stopped:
            return super().call_at(when, callback, *args, context=context)
        name = MACHINE.get() if context is None else context.get(MACHINE, "")
        when = _later(when, self._behind.get(name, 0.0))
        if name not in self._stopped:
            return super().call_at(when, callback, *args, context=context)
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._stopped[name][1].append(timer)
        return timer


def _later(when: float, seconds: float) -> float:
    """Rounded up: a timer that comes a hair too soon by its machine's clock would be set again, in no time."""
    return math.nextafter(when + seconds, math.inf) if seconds else when


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end on a fresh virtual loop."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()
