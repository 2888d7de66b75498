"""A timer that may be set anew at will, as most deadlines move before they are reached. Knows no session."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


LATE_S = 0.25
AGAIN_S = 1.0


class Alarm:
    """Calls `ring` at the deadline set last, or somewhat before a later one: whoever is called looks what is due.

    If that comes late, it is this program that stood still, and what came meanwhile has not been read yet: nothing
    counts as due before it has run for `AGAIN_S`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop, self._ring = loop, ring
        self._due: tuple[float, asyncio.Handle] | None = None
        self._not_before = 0.0

    def set(self, deadline: float | None) -> None:
        """Ring at this time of the loop's clock; None: not at all."""
        deadline = None if deadline is None else max(deadline, self._not_before)
        if self._due is not None and (deadline is None or self._due[0] > deadline):
            self._due[1].cancel()
            self._due = None
        if deadline is not None and self._due is None:
            self._due = deadline, self._loop.call_at(deadline, self._on_due, deadline)

    def _on_due(self, deadline: float) -> None:
        self._due, now = None, self._loop.time()
        if now - deadline > LATE_S:
            self._not_before = now + AGAIN_S
            self.set(deadline)
        else:
            self._ring()
