"""Owns how much a node trusts each peer to answer. Told `now`: knows no clock, no view and no routes.

A failure bans at once, for longer with every further one (exponential backoff), and leaves a score that halves every
HALF_LIFE_S; a success halves it too but lifts no ban. A peer that says it is busy or full has not failed. A clock that
was set back to before a failure ends its ban: nobody knows how much of it was left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

HALF_LIFE_S: Final = 120.0
BAN_FIRST_S: Final = 5.0
ONE_FAILURE_S: Final = 1.0  # failures of a peer this close together count as one
BAN_LONGEST_S: Final = 600.0
PENALTY_PER_FAILURE: Final = 0.5
MAX_SCORE: Final = 12.0
FORGOTTEN_SCORE: Final = 0.01
MAX_PEERS: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Standing:
    score: float = 0.0
    at: float = 0.0
    banned_until: float = 0.0
    failed_at: float | None = None

    def score_at(self, now: float) -> float:
        return self.score * math.exp2(-max(0.0, now - self.at) / HALF_LIFE_S)

    def banned_at(self, now: float) -> bool:
        return self.failed_at is not None and self.failed_at <= now < self.banned_until


class Health:
    """Failure scores and bans per peer id, at most MAX_PEERS of them; times in seconds of any one clock."""

    def __init__(self) -> None:
        self._standings: dict[str, _Standing] = {}

    def failure(self, peer_id: str, now: float) -> None:
        """Note that a peer closed, timed out or answered wrongly: banned for BAN_FIRST_S, doubling with the score."""
        standing = self._standings.pop(peer_id, _Standing(at=now))
        if standing.failed_at is not None and 0.0 <= now - standing.failed_at < ONE_FAILURE_S:  # others saw it too
            self._standings[peer_id] = standing
            return
        score = min(standing.score_at(now) + 1.0, MAX_SCORE)
        ban_s = min(BAN_FIRST_S * 2.0 ** (score - 1.0), BAN_LONGEST_S)
        until = standing.banned_until if standing.banned_at(now) else now
        self._standings[peer_id] = _Standing(score, now, max(until, now + ban_s), now)
        self._forget(now)

    def success(self, peer_id: str, now: float) -> None:
        """Note that a peer did what was asked."""
        if (standing := self._standings.get(peer_id)) is not None:
            score = standing.score_at(now) / 2
            self._standings[peer_id] = _Standing(score, now, standing.banned_until, standing.failed_at)

    def penalty(self, peer_id: str, now: float) -> float:
        """Return the factor >= 1 by which the planner holds this peer to be dearer; 1 for one that never failed."""
        return 1.0 + PENALTY_PER_FAILURE * self._standings.get(peer_id, _Standing()).score_at(now)

    def penalties(self, now: float) -> dict[str, float]:
        """Return the factors of all peers that failed lately, for `Knowledge.penalties`."""
        return {peer_id: self.penalty(peer_id, now) for peer_id in self._standings}

    def banned(self, now: float) -> frozenset[str]:
        """Return the peers to keep away from now, for `Knowledge.banned`."""
        return frozenset(peer_id for peer_id, standing in self._standings.items() if standing.banned_at(now))

    def _forget(self, now: float) -> None:
        """Drop the long forgiven, and past MAX_PEERS those whose last failure is the oldest."""
        if len(self._standings) <= MAX_PEERS:
            return
        self._standings = {
            peer_id: standing
            for peer_id, standing in self._standings.items()
            if standing.score_at(now) > FORGOTTEN_SCORE or standing.banned_at(now)
        }
        for peer_id in list(self._standings)[: max(0, len(self._standings) - MAX_PEERS)]:
            del self._standings[peer_id]
