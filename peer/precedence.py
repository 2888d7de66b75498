"""Which lease gives way to which when pages run out. Pure functions of what is known of each, and of the time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.peer.holding import Holding

TURN_S = 1.0
SETTLED_S = 0.1  # without work for so long, a lease is not about to go on
BACKGROUND_TURNS = 8  # a background lease that waits counts as come so much later


def patience(holding: Holding, now: float) -> float:
    """Seconds for which it has waited."""
    since = now if holding.waits_since is None else holding.waits_since
    return now - since - holding.priority * BACKGROUND_TURNS * TURN_S


def settled(holding: Holding, now: float) -> bool:
    """Whether it has had no work for a while."""
    return not holding.jobs and now - holding.idle_since >= SETTLED_S


def yields(holding: Holding, to: Holding, now: float) -> bool:
    """Whether a lease gives its pages to another one that needs them now."""
    if settled(holding, now):
        return True
    comes_first = (to.priority, to.number) < (holding.priority, holding.number)
    return now >= holding.turn_ends and (comes_first or patience(to, now) >= TURN_S)


def cost_of_leaving(holding: Holding, now: float) -> tuple[bool, float, int]:
    """The smallest leaves first."""
    if settled(holding, now):
        return False, holding.idle_since, 0
    return True, -holding.priority, -holding.number
