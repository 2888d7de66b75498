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
    order = np.argsort(costs.weight * (visit / (costs.stop - costs.start) + costs.block_s))
    start, stop = costs.start[order], costs.stop[order]
    chosen = np.zeros(order.size, dtype=np.bool_)
    for block in range(n_blocks):
        for among in (slice(HEAD), slice(None)):
            best = np.flatnonzero((start[among] <= block) & (block < stop[among]))[:KEEP]
            if best.size == KEEP:
                break
        chosen[order[best]] = True
    return chosen
