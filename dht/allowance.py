"""How much of a node's line each of those who ask it may use: so many bytes at once, so many a second. Told the time.

A question of 66 bytes can draw 3 MiB. Whoever follows the largest swarm there may be stays far below: reading it whole
takes 8 MiB, and what its 4,096 peers announce anew some 0.5 MiB/s.
"""

from __future__ import annotations

BURST_BYTES = 20 * 1024 * 1024
NAMES_BYTES = 4 * 1024 * 1024  # the last of it: who has drawn too many records still learns which nodes there are
BYTES_S = 1024 * 1024
SWEEP_EVERY_S = 10.0


class Allowance:
    """What each asker has left. As soon as all that one drew is paid for, nothing is kept of it."""

    def __init__(self) -> None:
        self._paid_at: dict[str, float] = {}  # asker -> when what it drew is paid for
        self._swept_at = float("-inf")

    def __len__(self) -> int:
        return len(self._paid_at)

    def left(self, asker: str, now: float) -> int:
        """Bytes that an asker may draw now; none if that is not above 0."""
        return BURST_BYTES - round(max(0.0, self._paid_at.get(asker, now) - now) * BYTES_S)

    def draw(self, asker: str, size: int, now: float) -> None:
        """So many bytes go to an asker."""
        if now >= self._swept_at + SWEEP_EVERY_S:
            self._swept_at = now
            self._paid_at = {other: at for other, at in self._paid_at.items() if at > now}
        self._paid_at[asker] = max(self._paid_at.get(asker, now), now) + size / BYTES_S
