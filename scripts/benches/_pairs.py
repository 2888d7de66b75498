"""Two times that are measured in turn, and the ratio of one to the other: as many pairs as it takes to know it."""

from __future__ import annotations

from math import comb, inf
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

SURE = 0.94
NARROW = 0.1  # of the median: known well enough

Pair = tuple[float, float]


def ratio(pairs: Sequence[Pair]) -> float:
    """The median of second / first: what slows the machine for a while slows both times of a pair."""
    return median([there / none for none, there in pairs])


def bounds(ratios: Sequence[float]) -> tuple[float, float]:
    """What the true median lies between in `SURE` of all cases, whatever the distribution: the sign test's order
    statistics. Anything, if there are too few."""
    ordered, count = sorted(ratios), len(ratios)
    outside, cut = 0.0, 0
    while cut < count // 2 and (outside := outside + 2 * comb(count, cut) / 2**count) <= 1 - SURE:
        cut += 1
    return (ordered[cut - 1], ordered[-cut]) if cut else (0.0, inf)


def known(pairs: Sequence[Pair], goal: float) -> bool:
    """Whether the ratio is known within a tenth, or to be on one side of the goal."""
    low, high = bounds([there / none for none, there in pairs])
    return high <= goal or low > goal or high - low <= NARROW * ratio(pairs)


async def in_turn(
    none: Callable[[], Awaitable[float]], there: Callable[[], Awaitable[float]], goal: float, least: int, most: int
) -> list[Pair]:
    """At least `least` pairs (none, there), until the ratio is `known` or there are `most`; each begins every second
    pair."""
    pairs: list[Pair] = []
    while len(pairs) < least or (len(pairs) < most and not known(pairs, goal)):
        if len(pairs) % 2:
            second = await there()
            pairs.append((await none(), second))
        else:
            first = await none()
            pairs.append((first, await there()))
    return pairs
