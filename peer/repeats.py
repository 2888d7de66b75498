"""How much a lease may send again to refill its next hop. Pure: told the time; counts rows, knows no messages.

A few bytes have a lease send all that it kept once more, to whomever its client names. Without a bound a stranger, who
brought that once, could fill another's link with it for as long as he likes. So what goes out again is held against
what came in: a number of times at once, and once more every few seconds, which is more than repairs need. Past that,
whoever wants it brings it himself: he opens the lease anew and refills it from his own inputs.
"""

from __future__ import annotations

from typing import Final

AT_ONCE: Final = 16  # times all that the lease was brought
EVERY_S: Final = 4.0  # and once more: a next hop that is lost every 5 s for an hour is refilled each time


class Repeats:
    """Of one lease."""

    def __init__(self) -> None:
        self._brought = 0
        self._owed, self._at = 0.0, 0.0

    def brought(self, rows: int) -> None:
        """So many rows came in."""
        self._brought += rows

    def elapse(self, now: float) -> None:
        """It is this late; seconds of any clock that does not go back."""
        self._owed = max(0.0, self._owed - (now - self._at) * self._brought / EVERY_S)
        self._at = now

    def take(self, rows: int) -> bool:
        """Whether so many rows may be sent again now; they are counted if so."""
        if self._owed + rows > AT_ONCE * self._brought:
            return False
        self._owed += rows
        return True
