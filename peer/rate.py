"""How much of something happens a second lately: an average that forgets. Numbers only; told the time."""

from __future__ import annotations

from math import exp

MEMORY_S = 10.0


class Rate:
    """An amount a second, each amount weighing less as it grows old (to 1/e in `MEMORY_S`)."""

    def __init__(self) -> None:
        self._sum, self._at = 0.0, 0.0

    def add(self, amount: float, now: float) -> None:
        """So much has happened now."""
        self._sum, self._at = self._left(now) + amount, now

    def per_s(self, now: float) -> float:
        """As of now."""
        return self._left(now) / MEMORY_S

    def _left(self, now: float) -> float:
        return self._sum * exp(min(0.0, self._at - now) / MEMORY_S)
