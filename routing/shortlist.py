"""Owns which peers of a big swarm are worth the exact search. Arrays only: knows no request, no time, no chance.

Per block the KEEP best by what a block costs there, the fixed price of the hop spread over the blocks it would serve:
once with the leg from where the route begins, once with the leg to the nearest peer it knows, for clusters far away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from shoal.routing.columns import Columns
    from shoal.routing.cost import Costs

ALL: Final = 48  # with so few peers nobody is left out
KEEP: Final = 8
HEAD: Final = 512  # of the peers in order of price, how many to look at before looking at all


def shortlist(columns: Columns, costs: Costs, n_blocks: int) -> NDArray[np.int64]:
    """Return places in `costs` of the peers to search over, ascending; every block stays covered as far as it was."""
    if costs.rows.size <= ALL:
        return np.arange(costs.rows.size)
    leg_s = costs.into.latency_s
    near_s = np.minimum(leg_s, columns.nearest_s[costs.rows] / 2)
    chosen = _best_per_block(costs, leg_s, n_blocks)
    if (near_s < leg_s).any():
        chosen |= _best_per_block(costs, near_s, n_blocks)
    return np.flatnonzero(chosen)


def _best_per_block(costs: Costs, leg_s: NDArray[np.float64], n_blocks: int) -> NDArray[np.bool_]:
    work = costs.work
    visit = work.crossings * (leg_s + costs.visit_s) + work.carried * costs.out.byte_s
    price_s = costs.weight * (visit / (costs.stop - costs.start) + costs.block_s)
    head = np.argpartition(price_s, HEAD)[:HEAD] if price_s.size > HEAD else np.arange(price_s.size)
    blocks = np.arange(n_blocks)[:, None]
    chosen = np.zeros(price_s.size, dtype=np.bool_)
    chosen[_best(price_s, head, (costs.start[head] <= blocks) & (blocks < costs.stop[head]))] = True
    for block in np.flatnonzero(((costs.start[head] <= blocks) & (blocks < costs.stop[head])).sum(axis=1) < KEEP):
        holders = np.flatnonzero((costs.start <= block) & (block < costs.stop))
        chosen[_best(price_s, holders, np.ones((1, holders.size), dtype=np.bool_))] = True
    return chosen


def _best(price_s: NDArray[np.float64], among: NDArray[np.int64], holds: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The KEEP cheapest holders of each block; `holds` [block, place in `among`]."""
    order = np.argsort(price_s[among], kind="stable")
    holds = holds[:, order]
    return among[order[(holds & (holds.cumsum(axis=1) <= KEEP)).any(axis=0)]]
