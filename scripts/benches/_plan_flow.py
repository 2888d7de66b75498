"""What a placement can carry (max flow), what any placement could, and how fast sessions are that share it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BATCHED = 0.15  # one more session in a peer's batch lengthens its steps by this share; the same for everybody here
ROUNDS = 60


def carried(spans: Sequence[range], speeds: Sequence[float], n_blocks: int) -> float:
    """Tokens/s through all blocks at once, by the best split of every peer's time over its own blocks.

    A flow from peers (each gives at most `speeds` block-tokens/s) through the blocks they hold to a sink that takes the
    same from each block; the largest such flow, as a linear program.
    """
    pairs = [(i, block) for i, span in enumerate(spans) for block in span]
    if not pairs:
        return 0.0
    count = len(pairs)
    owners, blocks = np.array(pairs).T
    every = np.arange(count)
    shape = (len(spans) + n_blocks, count + 1)
    rows = np.concatenate([owners, len(spans) + blocks, len(spans) + np.arange(n_blocks)])
    columns = np.concatenate([every, every, np.full(n_blocks, count)])
    values = np.concatenate([np.ones(count), -np.ones(count), np.ones(n_blocks)])
    at_most = np.concatenate([np.array(speeds), np.zeros(n_blocks)])
    goal = np.zeros(count + 1)
    goal[-1] = -1.0
    found = linprog(goal, A_ub=coo_array((values, (rows, columns)), shape).tocsr(), b_ub=at_most, method="highs")
    return float(-found.fun)


def bound(capacities: Sequence[int], speeds: Sequence[float], n_blocks: int) -> float:
    """The same with every peer free to hold any blocks at any moment: no placement of these peers carries more."""
    able = sum(speed for room, speed in zip(capacities, speeds, strict=True) if room)
    return able / n_blocks


def over_routes(services_s: Sequence[Mapping[str, float]]) -> float:
    """Tokens/s that fixed routes carry, each as many as is best: none of their peers is busy for more than its time.

    `services_s`: seconds that a token keeps each peer of a route.
    """
    peers = {peer: i for i, peer in enumerate(sorted({peer for service in services_s for peer in service}))}
    busy = np.zeros((len(peers), len(services_s)))
    for route, service in enumerate(services_s):
        for peer, seconds in service.items():
            busy[peers[peer], route] = seconds
    found = linprog(-np.ones(len(services_s)), A_ub=busy, b_ub=np.ones(len(peers)), method="highs")
    return float(-found.fun)


def together(legs_s: Sequence[float], services_s: Sequence[Mapping[str, float]]) -> list[float]:
    """Tokens/s of sessions that run for ever over fixed routes: `legs_s` on the network, `services_s` in each peer.

    A closed network of queues in the approximation of Bard and Schweitzer, with batching stations: whoever else is in
    service lengthens a step by BATCHED of it.
    """
    peers = {peer: i for i, peer in enumerate(sorted({peer for service in services_s for peer in service}))}
    alone = np.zeros((len(legs_s), len(peers)))
    for row, service in enumerate(services_s):
        for peer, seconds in service.items():
            alone[row, peers[peer]] = seconds
    kept = alone.copy()
    for _ in range(ROUNDS):
        rate = 1.0 / (np.array(legs_s) + kept.sum(axis=1))
        inside = rate[:, None] * kept  # of each session at each peer on average
        kept = 0.5 * kept + 0.5 * alone * (1.0 + BATCHED * (inside.sum(axis=0)[None] - inside))
    return [float(one) for one in 1.0 / (np.array(legs_s) + kept.sum(axis=1))]
