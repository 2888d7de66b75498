"""An asyncio event loop on virtual time: it never sleeps, it jumps to the next timer. Knows no network."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine


MOST_TURNS = 2_000_000


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
    """`time()` is virtual; callbacks run in the order in which they fall due."""

    def __init__(self) -> None:
        self.now = 0.0
        jump = _Jump()
        jump.loop = self
        super().__init__(jump)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self.now


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end on a fresh virtual loop."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()
