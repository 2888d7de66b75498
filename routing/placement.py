"""Owns which blocks a joining peer should serve, and why in words. Pure; knows no device, no network.

First as few blocks as possible without a holder, then the highest bottleneck (the tokens/s of the block that all its
holders together serve slowest), then as few blocks as possible at that bottleneck, then the least expected time per
token over measured distances, then a span that leaves no splinters. What is still equal is left to chance, so that two
peers that join at once spread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from shoal.routing.bounds import BLOCK_S
from shoal.routing.cost import speeds
from shoal.routing.knowledge import Knowledge, Speed
from shoal.routing.pace import Pace
from shoal.routing.words import name_blocks

if TYPE_CHECKING:
    from random import Random

    from numpy.typing import NDArray
    from shoal.routing.columns import Columns
    from shoal.routing.view import View

ALIKE: Final = 0.01  # gains this close (relative) count as equal
ROUNDING: Final = 1e-6
TIMED: Final = 8  # spans, of those equally good for throughput, whose time per token is worked out


@dataclass(frozen=True, slots=True)
class Placement:
    """Blocks `start`..`stop` to serve, one sentence why, and the swarm's bottleneck in tokens/s without and with it."""

    start: int
    stop: int
    reason: str
    bottleneck_before: float
    bottleneck_after: float


def place_span(
    view: View, capacity_blocks: int, me: Speed, now: float, rng: Random, knowledge: Knowledge | None = None
) -> Placement:
    """Return the span of `capacity_blocks` blocks (or the whole model, if smaller) that helps the swarm most.

    `me`: this peer's speed. `knowledge`: its measured round trips and speeds of others. Peers that are joining
    count as if online, those that leave do not; take this peer's own earlier announcement out first (`View.without`).
    Raises ValueError if not even one block fits.
    """
    if capacity_blocks < 1:
        raise ValueError("a peer must have room for at least one block")
    length = min(capacity_blocks, view.n_blocks)
    columns, knowledge = view.columns, looking(me, knowledge)
    rows = _counted(columns, now)
    before = throughput(columns, knowledge, now, view.n_blocks)
    after = _with_me(before, me, length)
    starts, saved = _best_for_throughput(before, after), ""
    if after[starts[0]].min() > 0.0:
        pace = Pace.of(columns, knowledge, rows, view.n_blocks)
        starts, saved = _quickest(pace, me, starts, length, rng)
    start = rng.choice(_without_splinters(before, starts, length))
    reason = _reason(before, after[start], start, start + length) + saved
    return Placement(start, start + length, reason, float(before.min()), float(after[start].min()))


@dataclass(frozen=True, slots=True)
class Gain:
    """A swarm without and with one peer more: tokens/s at its slowest block, seconds a token takes (None: not
    all blocks have a holder)."""

    bottleneck_before: float
    bottleneck_after: float
    token_before_s: float | None
    token_after_s: float | None


def gain_of(view: View, start: int, stop: int, me: Speed, knowledge: Knowledge | None = None) -> Gain:
    """Return what the swarm `view` gains by a peer that serves `start`..`stop` at the speed `me`."""
    knowledge = looking(me, knowledge)
    before = throughput(view.columns, knowledge, view.at, view.n_blocks)
    after = before.copy()
    after[start:stop] += tokens_per_s(me, stop - start)
    pace = Pace.of(view.columns, knowledge, _counted(view.columns, view.at), view.n_blocks)
    token_s = pace.token_s() if before.min() > 0.0 else None
    with_me = pace.token_s_with(me, start, stop) if after.min() > 0.0 else None
    return Gain(float(before.min()), float(after.min()), token_s, with_me)


def looking(me: Speed, knowledge: Knowledge | None) -> Knowledge:
    """Return what a peer of the speed `me` knows, with `own` as it is if that is known to be better."""
    knowledge = knowledge or Knowledge()
    own = knowledge.own or me
    return replace(knowledge, own=Speed(min(own.decode_s, me.decode_s), min(own.prefill_s, me.prefill_s)))


def _with_me(before: NDArray[np.float64], me: Speed, length: int) -> NDArray[np.float64]:
    """[start, block]: tokens/s with this peer at every possible start."""
    after = np.tile(before, (before.size - length + 1, 1))
    for start in range(after.shape[0]):
        after[start, start : start + length] += tokens_per_s(me, length)
    return after


def tokens_per_s(speed: Speed, length: int) -> float:
    """Return the tokens/s of a peer that serves `length` blocks, one token at a time."""
    return 1.0 / (BLOCK_S.clamp(speed.decode_s) * length)


def _counted(columns: Columns, now: float) -> NDArray[np.int64]:
    return np.flatnonzero((columns.online | columns.joining) & (columns.expiry > now))


def _quickest(pace: Pace, me: Speed, starts: list[int], length: int, rng: Random) -> tuple[list[int], str]:
    """Of `starts`, those with the least time per token (at most TIMED are tried), and what that saves in words."""
    tried = sorted(rng.sample(starts, min(TIMED, len(starts))))
    token_s = {start: pace.token_s_with(me, start, start + length) or math.inf for start in tried}
    least_s = min(token_s.values())
    now_s = pace.token_s()
    saved = ""
    if now_s is not None and least_s < now_s * (1.0 - ALIKE):
        saved = f"; a token takes about {least_s * 1e3:.3g} ms instead of {now_s * 1e3:.3g}"
    return [start for start in tried if token_s[start] <= least_s * (1.0 + ALIKE)], saved


def throughput(columns: Columns, knowledge: Knowledge | None, now: float, n_blocks: int) -> NDArray[np.float64]:
    """Return the tokens/s that the holders of each block can serve together, each shared evenly over its own span;
    peers that are joining count."""
    rows = _counted(columns, now)
    decode_s, _ = speeds(columns, knowledge or Knowledge())
    start, stop = columns.start[rows], columns.stop[rows]
    change = np.zeros(n_blocks + 1)
    rate = 1.0 / (decode_s[rows] * (stop - start))
    np.add.at(change, start, rate)
    np.add.at(change, stop, -rate)
    held = np.zeros(n_blocks + 1, dtype=np.int64)
    np.add.at(held, start, 1)
    np.add.at(held, stop, -1)
    return np.where(np.cumsum(held[:-1]) > 0, np.maximum(np.cumsum(change[:-1]), 0.0), 0.0)


def _best_for_throughput(before: NDArray[np.float64], after: NDArray[np.float64]) -> list[int]:
    """Starts (rows of `after`) that are best by blocks without a holder, bottleneck, blocks at the bottleneck."""
    missing = (after <= 0.0).sum(axis=1)
    starts = np.flatnonzero(missing == missing.min())
    lowest = after[starts].min(axis=1)
    gain = lowest.max() - before.min()
    starts = starts[lowest >= lowest.max() * (1.0 - ROUNDING) - gain * ALIKE]
    at_bottleneck = (after[starts] <= lowest.max() * (1.0 + ROUNDING)).sum(axis=1)
    return [int(start) for start in starts[at_bottleneck == at_bottleneck.min()]]


def _without_splinters(before: NDArray[np.float64], starts: list[int], length: int) -> list[int]:
    """Of `starts`, those that leave the fewest separate runs of equally served blocks at the bottleneck."""
    lowest = before.min() * (1.0 + ROUNDING)

    def runs(start: int) -> int:
        low = before <= lowest
        low[start : start + length] = False
        return int(np.diff(low.astype(np.int8), prepend=0).clip(0).sum())

    fewest = min(map(runs, starts))
    return [start for start in starts if runs(start) == fewest]


def _reason(before: NDArray[np.float64], after: NDArray[np.float64], start: int, stop: int) -> str:
    low, high = float(before.min()), float(after.min())
    if unheld := [block for block in range(start, stop) if before[block] <= 0.0]:
        left = [block for block in range(before.size) if after[block] <= 0.0]
        still = f"; {name_blocks(left)} still {'has' if len(left) == 1 else 'have'} none" if left else ""
        return f"{name_blocks(unheld)} {'has' if len(unheld) == 1 else 'have'} no holder{still}"
    slowest = [block for block in range(start, stop) if before[block] <= low * (1.0 + ALIKE)]
    if not slowest:
        return f"the slowest blocks stay at {_say(low)} tokens/s wherever this peer goes"
    holds = f"{name_blocks(slowest)} {'holds' if len(slowest) == 1 else 'hold'} the swarm back"
    if high > low * (1.0 + ROUNDING):
        return f"{holds}: {_say(low)} tokens/s now, {_say(high)} with this peer"
    return f"{holds} at {_say(low)} tokens/s, together with others that do not fit"


def _say(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.3g}"
