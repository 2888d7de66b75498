"""Owns the expected time per token of a swarm with one peer more. Pure; knows no throughput, no reasons."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from shoal.routing.bounds import BLOCK_S, LEG_S
from shoal.routing.cost import HOP_OVERHEAD_S, Costs, price
from shoal.routing.legs import between
from shoal.routing.planner import problem_of
from shoal.routing.route import RouteRequest
from shoal.routing.search import Problem, cheapest, total_of
from shoal.routing.shortlist import shortlist

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from shoal.routing.columns import Columns
    from shoal.routing.knowledge import Knowledge, Speed


@dataclass(frozen=True, slots=True)
class Pace:
    """One decode token through the whole model for a client at the default leg from everyone.

    `legs_s` [P]: one-way seconds between this node and each of the problem's candidates.
    """

    problem: Problem
    legs_s: NDArray[np.float64]
    default_leg_s: float

    @staticmethod
    def of(columns: Columns, knowledge: Knowledge, rows: NDArray[np.int64], n_blocks: int) -> Pace:
        """Return the pace of the peers `rows`; `knowledge` is that of the peer that looks for a place."""
        default_leg_s = LEG_S.clamp(knowledge.default_leg_s)
        costs = candidates(columns, knowledge, rows, n_blocks)
        legs_s = [LEG_S.clamp(knowledge.rtts_s[i] / 2) if i in knowledge.rtts_s else default_leg_s for i in columns.ids]
        problem = problem_of(costs, between(columns, knowledge, costs.rows), n_blocks)
        return Pace(problem, np.array(legs_s)[costs.rows], default_leg_s)

    def token_s(self) -> float | None:
        """Return the seconds per token as it is, None while some block has no holder."""
        tiles = cheapest(self.problem)
        return None if tiles is None else total_of(self.problem, tiles)

    def token_s_with(self, me: Speed, start: int, stop: int) -> float | None:
        """Return the seconds per token were this node to serve `start`..`stop`, None while some block has no holder."""
        problem = self.problem
        visit_s = self.legs_s + HOP_OVERHEAD_S
        mine = np.append(visit_s, np.inf)[None]
        between_s = np.vstack([np.column_stack([problem.between, visit_s]), mine])
        joined = replace(
            problem,
            start=np.append(problem.start, start),
            stop=np.append(problem.stop, stop),
            first=np.append(problem.first, self.default_leg_s + HOP_OVERHEAD_S),
            between=between_s,
            last=np.append(problem.last, self.default_leg_s),
            block=np.append(problem.block, BLOCK_S.clamp(me.decode_s)),
            stage=np.append(problem.stage, 0.0),
        )
        tiles = cheapest(joined)
        return None if tiles is None else total_of(joined, tiles)


def candidates(columns: Columns, knowledge: Knowledge, rows: NDArray[np.int64], n_blocks: int) -> Costs:
    """Return those of the peers `rows` over which such a token may go."""
    costs = price(columns, RouteRequest(0, n_blocks, knowledge=replace(knowledge, rtts_s={})), rows)
    return costs.at(shortlist(columns, costs, n_blocks))
