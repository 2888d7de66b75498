"""This machine's own line: the most that it may be used, and the most that it was seen to carry. Pure: no clock.

Shared by all links of a node.
"""

from __future__ import annotations

from typing import Final

BURST_S: Final = 0.02  # what was not used may be used later, up to so much
MEMORY_S: Final = 900.0


class Bucket:
    """A token bucket: `rate` bytes/s, 0 for no limit. Taking is never refused; who takes waits afterwards, or before
    the next time, until `wait_s` is 0. So a small message never waits for itself, and is paid for all the same."""

    def __init__(self, rate: float = 0.0) -> None:
        self.rate = rate
        self._paid_until = 0.0  # the time at which what was taken is paid for

    def take(self, size: int, now: float) -> None:
        """Use so many bytes of it."""
        if self.rate:
            self._paid_until = max(self._paid_until, now - BURST_S) + size / self.rate

    def wait_s(self, now: float) -> float:
        """How long nothing more should be taken."""
        return max(0.0, self._paid_until - now)


class Line:
    """`limit`: bytes/s each way, 0 for none. `up` and `down` are asked before sending and after receiving."""

    def __init__(self, limit: float = 0.0) -> None:
        self.limit = limit
        self.up, self.down = Bucket(limit), Bucket(limit)
        self._seen: list[tuple[float, float]] = []  # (when, bytes/s), rates falling

    def saw(self, rate: float, now: float) -> None:
        """A link was seen to carry so many bytes/s."""
        fresh = [(when, known) for when, known in self._seen if known > rate and now - when < MEMORY_S]
        self._seen = [*fresh, (now, rate)]

    def upload(self, now: float) -> float:
        """Bytes/s that this machine can send: the best of late, within the limit; 0 if unknown."""
        best = next((rate for when, rate in self._seen if now - when < MEMORY_S), self.limit)
        return min(best, self.limit) if self.limit else best
