"""What a client has found out about peers by using them: speeds, waits and failures. No network, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.peer.errors import HopRefused, Reason
from shoal.routing.health import Health
from shoal.routing.knowledge import Knowledge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shoal.client.actions import SessionStats
    from shoal.peer.errors import HopError
    from shoal.routing.planner import Hop

DECAY = 0.5
_BLAMELESS = frozenset({Reason.BUSY, Reason.DRAINING, Reason.UNKNOWN_LEASE, Reason.NO_SUCH_BLOCKS})


class Measured:
    """Folds sessions' receipts and failures into the `Knowledge` that planning takes."""

    def __init__(self) -> None:
        self.health = Health()
        self._waits_s: dict[str, float] = {}

    def learn(self, route: Sequence[Hop], stats: SessionStats) -> None:
        """A session ended: keep how long its steps waited at each hop."""
        for hop in route:
            times = stats.hops.get(hop.peer_id)
            if times is not None and times.steps:
                wait_s = times.queue_s / times.steps
                self._waits_s[hop.peer_id] = DECAY * self._waits_s.get(hop.peer_id, wait_s) + (1 - DECAY) * wait_s

    def failed(self, error: HopError, now: float) -> None:
        """A hop failed. One that is merely full, leaving or restarted did nothing wrong."""
        if not isinstance(error, HopRefused) or error.reason not in _BLAMELESS:
            self.health.failure(error.peer_id, now)

    def knowledge(self, rtts_s: Mapping[str, float], now: float) -> Knowledge:
        """Everything measured so far."""
        return Knowledge(
            rtts_s=rtts_s, waits_s=dict(self._waits_s), penalties=self.health.penalties(now),
            banned=self.health.banned(now),
        )  # fmt: skip
