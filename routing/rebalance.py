"""Owns whether a peer should leave its blocks for others. Pure; knows no device, no network, no clock.

A move pays when what the slowest blocks gain within HORIZON_S is more than what the swarm loses while the peer loads,
and what the sessions that it hands over have to compute again. It never leaves a block without an online holder, and
waits while others come to its blocks: whoever looks next sees what the first one does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from shoal.routing.placement import ALIKE, looking, place_span, throughput, tokens_per_s
from shoal.routing.words import name_blocks

if TYPE_CHECKING:
    from random import Random

    from numpy.typing import NDArray
    from shoal.routing.announcement import Announcement
    from shoal.routing.knowledge import Knowledge, Speed
    from shoal.routing.placement import Placement
    from shoal.routing.view import View

HORIZON_S: Final = 1800.0  # how long a move must pay off in
MIN_GAIN: Final = 0.03  # less is not worth anybody's trouble
REPLAY_TOKENS: Final = 1000  # that a session handed over has to have computed again


@dataclass(frozen=True, slots=True)
class Stake:
    """What a move costs this peer: `loading_s` seconds until it serves again, `sessions` that it serves now."""

    loading_s: float
    sessions: int


@dataclass(frozen=True, slots=True)
class Move:
    """Blocks `start`..`stop` to go to, one sentence why, and the swarm's bottleneck in tokens/s before and after."""

    start: int
    stop: int
    reason: str
    bottleneck_before: float
    bottleneck_after: float


@dataclass(frozen=True, slots=True)
class Stay:
    """Why not, in one sentence."""

    reason: str


def rebalance(
    view: View, me: Announcement, speed: Speed, stake: Stake, rng: Random, knowledge: Knowledge | None = None
) -> Move | Stay:
    """Return where the peer `me` of `view` should go, if it should. `speed`: its measured one."""
    others = view.without(me.peer_id)
    alone = uncovered(others, me)
    if alone:
        return Stay(f"nobody else serves {name_blocks(alone)}")
    movers = [peer for peer in others.peers if peer.state == "joining" and _overlap(peer, me)]
    if movers:
        return Stay("another peer is about to serve some of these blocks: what that changes is to be seen first")
    length, knowledge = me.stop - me.start, looking(speed, knowledge)
    placement = place_span(others, length, speed, view.at, rng, knowledge)
    if placement.start == me.start:
        return Stay("these blocks are where this peer helps most")
    without = throughput(others.columns, knowledge, others.at, view.n_blocks)
    return _weigh(without, me, placement, stake, speed)


def uncovered(others: View, me: Announcement) -> list[int]:
    """Return the blocks of `me` that no online peer of `others` holds."""
    held = others.coverage()
    return [block for block in range(me.start, me.stop) if not held[block]]


def yields_to(before: View, now: View, me: Announcement) -> bool:
    """Return whether `me`, which has just said that it moves, must take that back: another peer that held some of the
    same blocks moves too and comes before it, or a block would be left without an online holder. Nobody who moves
    counts as staying: it may have looked before this peer's word was out, and be gone."""
    old = next((peer for peer in before.peers if peer.peer_id == me.peer_id), me)
    joining = {peer.peer_id for peer in now.peers if peer.state == "joining"}
    rivals = [
        peer for peer in before.peers if peer.peer_id in joining and peer.state == "online" and _overlap(peer, old)
    ]
    return any(peer.peer_id < me.peer_id for peer in rivals) or bool(uncovered(now.without(me.peer_id), old))


def moved(me: Announcement, start: int, stop: int) -> Announcement:
    """Return what a peer announces while it moves to `start`..`stop`."""
    return replace(me, start=start, stop=stop, state="joining", queue=0, free_tokens=0)


def _weigh(
    without: NDArray[np.float64], me: Announcement, placement: Placement, stake: Stake, speed: Speed
) -> Move | Stay:
    """`without` [block]: tokens/s of the others. What a move changes is looked at over the blocks that it leaves or
    comes to: where many blocks are equally slow, each of the moves that mend them counts for its part."""
    now, after = without.copy(), without.copy()
    now[me.start : me.stop] += tokens_per_s(speed, me.stop - me.start)
    after[placement.start : placement.stop] += tokens_per_s(speed, placement.stop - placement.start)
    slowest = now <= now.min() * (1.0 + ALIKE)
    mended = slowest & (after > now)
    touched = np.r_[me.start : me.stop, placement.start : placement.stop]
    low, high = float(now[touched].min()), float(after[touched].min())
    if not mended.any() or high < low * (1.0 + MIN_GAIN):
        return Stay(f"the slowest blocks stay at {now.min():.3g} tokens/s or others become as slow: not worth a move")
    gained = (high - low) * float(mended.sum() / slowest.sum()) * (HORIZON_S - stake.loading_s)
    replayed = stake.sessions * REPLAY_TOKENS * speed.prefill_s / speed.decode_s  # in tokens' worth of computing
    if gained <= float(now.min() - without.min()) * stake.loading_s + replayed:
        return Stay(f"loading for {stake.loading_s:.0f} s costs more than {high - low:.3g} tokens/s bring")
    return Move(placement.start, placement.stop, placement.reason, float(now.min()), float(after.min()))


def _overlap(a: Announcement, b: Announcement) -> bool:
    return a.start < b.stop and b.start < a.stop
