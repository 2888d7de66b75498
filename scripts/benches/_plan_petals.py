"""Petals' rules for placement, rebalancing and routing, written anew from what its authors published.

Borzunov et al., "Distributed Inference and Fine-tuning of Large Language Models Over The Internet", NeurIPS 2023
(arXiv 2312.08361), section 3.2 and appendix D, with the constants of its public code: a server takes the interval whose
sorted block throughputs are lexicographically least; from time to time each asks whether the swarm's bottleneck is
under 75 % of what it would be if all servers moved until none wants to, and then moves; clients take the shortest path
over latencies and block times, servers' load not being known to them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from numpy.typing import NDArray

QUALITY: Final = 0.75
CHECK_S: Final = 300.0  # between checks; theirs is 60 s, which takes five times as long to simulate
OVERHEAD_S: Final = 0.018  # that its router adds to every leg, so as to like few hops
EPSILON: Final = 1e-3
ROUNDS: Final = 20  # of the imagined moves; they nearly always settle in three


def best_start(throughputs: NDArray[np.float64], length: int) -> int:
    """The interval with the least block throughputs, compared worst first."""
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(throughputs, length), axis=1)
    return int(np.lexsort(windows.T[::-1])[0])


def throughputs_of(spans: Mapping[str, range], rates: Mapping[str, float], n_blocks: int) -> NDArray[np.float64]:
    """Tokens/s of every block: the sum over its servers."""
    total = np.zeros(n_blocks)
    for peer_id, span in spans.items():
        total[span.start : span.stop] += rates[peer_id]
    return total


def wants_to_move(
    me: str, spans: Mapping[str, range], rates: Mapping[str, float], n_blocks: int, rng: Random
) -> int | None:
    """Where a server would go at one of its checks, or None."""
    spans = dict(spans)
    total = throughputs_of(spans, rates, n_blocks)
    before = float(total.min())
    target = _move(me, spans, rates, total)
    if target is None or (before > EPSILON and _without(me, spans, rates, n_blocks) <= 0.0):
        return None
    for _ in range(ROUNDS):
        order = list(spans)
        rng.shuffle(order)
        moved = [_move(peer_id, spans, rates, total) is not None for peer_id in order]
        if not any(moved):
            break
    after = float(total.min())
    if after < max(before, EPSILON) or before / after >= QUALITY - EPSILON:
        return None
    return target


def _without(me: str, spans: dict[str, range], rates: Mapping[str, float], n_blocks: int) -> float:
    return float(throughputs_of({i: span for i, span in spans.items() if i != me}, rates, n_blocks).min())


def _move(me: str, spans: dict[str, range], rates: Mapping[str, float], total: NDArray[np.float64]) -> int | None:
    """Move one server where it would rather be; its new start if that is another."""
    span, rate = spans[me], rates[me]
    total[span.start : span.stop] -= rate * (1 + EPSILON)
    start = best_start(total, len(span))
    total[span.start : span.stop] += rate * EPSILON
    spans[me] = range(start, start + len(span))
    total[start : start + len(span)] += rate
    return start if start != span.start else None


def route(
    spans: Mapping[str, range],
    block_s: Mapping[str, float],
    home_s: Mapping[str, float],
    leg_s: Callable[[str, str], float],
    n_blocks: int,
) -> list[tuple[str, int, int]]:
    """(server, first block, end) along the shortest path; a server may be left after any of its blocks. `home_s`: the
    client's legs."""
    ids = sorted(spans)
    start = np.array([spans[i].start for i in ids])
    stop = np.array([spans[i].stop for i in ids])
    each_s = np.array([block_s[i] for i in ids])
    legs_s = np.array([[np.inf if a == b else leg_s(a, b) + OVERHEAD_S for b in ids] for a in ids])
    reach = np.where(start == 0, np.array([home_s[i] for i in ids]) + OVERHEAD_S, np.inf)
    came: list[NDArray[np.int64]] = []
    for block in range(n_blocks):
        reach = np.where((start <= block) & (block < stop), reach + each_s, np.inf)
        if block + 1 == n_blocks:
            break
        over = reach[:, None] + legs_s
        best = over.argmin(axis=0)
        stays = reach <= over[best, np.arange(len(ids))]
        came.append(np.where(stays, np.arange(len(ids)), best))
        reach = np.minimum(reach, over[best, np.arange(len(ids))])
    at = int((reach + np.array([home_s[i] for i in ids])).argmin())
    owners = [at, *(at := int(back[at]) for back in reversed(came))][::-1]
    cuts = [0, *(b for b in range(1, n_blocks) if owners[b] != owners[b - 1]), n_blocks]
    return [(ids[owners[a]], a, b) for a, b in pairwise(cuts)]
