"""What a link's small frames cost whoever sends them. Pure: told the time; knows no messages.

A frame takes this program's time whatever it carries: a stranger's pings, a few bytes each, would fill the loop that
serves tokens at a few Mbit/s. So a peer has whoever opens a link to it pay for frames with the bytes that they bring,
beyond a number that honest sides do not come near: they send states. A link that owes is not read for a while.
"""

from __future__ import annotations

from typing import Final

AT_ONCE: Final = 512  # frames that are taken before others have their turn
FRAME_BYTES: Final = 512  # pay for a frame
BURST: Final = 8192  # frames without bytes, at once
PER_S: Final = 4096  # and a second


class Toll:
    """Of one link."""

    def __init__(self) -> None:
        self._owed, self._at = 0.0, 0.0

    def wait_s(self, frames: int, size: int, now: float) -> float:
        """So many frames came in so many bytes: seconds for which the link is not to be read."""
        self._owed = max(0.0, self._owed - (now - self._at) * PER_S)
        self._at = now
        self._owed = max(0.0, self._owed + frames - size / FRAME_BYTES)
        return max(0.0, self._owed - BURST) / PER_S
