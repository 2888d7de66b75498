"""A timer that may be set anew at will, as most deadlines move before they are reached. Knows no session."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Alarm:
    """Calls `ring` at the deadline set last, or somewhat before a later one: whoever is called looks what is due."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop, self._ring = loop, ring
        self._due: tuple[float, asyncio.Handle] | None = None

    def set(self, deadline: float | None) -> None:
        """Ring at this time of the loop's clock; None: not at all."""
        if self._due is not None and (deadline is None or self._due[0] > deadline):
            self._due[1].cancel()
            self._due = None
        if deadline is not None and self._due is None:
            self._due = deadline, self._loop.call_at(deadline, self._on_due)

    def _on_due(self) -> None:
        self._due = None
        self._ring()
