"""Which lease gives way to which when pages run out. Pure functions of what is known of each, and of the time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

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
    """Whether a lease gives its pages to another one that needs them now. Who has begun to leave goes on, though it has
    work again, while another one is on its way back: else neither of the two could run."""
    if settled(holding, now):
        return True
    comes_first = (to.priority, to.number) < (holding.priority, holding.number)
    goes_on = to.returning and bool(holding.saved)
    return now >= holding.turn_ends and (comes_first or goes_on or patience(to, now) >= TURN_S)


def cost_of_leaving(holding: Holding, now: float) -> tuple[bool, float, int]:
    """The smallest leaves first."""
    if settled(holding, now):
        return False, holding.idle_since, 0
    return True, -holding.priority, -holding.number


def next_chance(holdings: Iterable[Holding], waiting: Iterable[Holding], now: float) -> float:
    """When somebody of those who wait may get pages, if nothing happens before."""
    times = []
    for holding in holdings:
        times += [holding.turn_ends, *([] if holding.jobs else [holding.idle_since + SETTLED_S])]
    for holding in waiting:
        times += [now + turns * TURN_S - patience(holding, now) for turns in (1, 2)]
    return min((time for time in times if time > now), default=now + TURN_S)
