"""Owns the choice of a route. Pure: handed `now` and a random generator; knows no network and keeps nothing.

Load spreads because every client sees each peer's cost raised by a random share of at most SPREAD: among near-equal
routes the choice is even, a route more than SPREAD dearer than the best is never taken, and queues do the rest.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
from shoal.routing.cost import Costs, leg_s, price, usable
from shoal.routing.knowledge import Knowledge, Speed
from shoal.routing.route import Hop, NoRoute, Route, RouteRequest
from shoal.routing.search import Problem, Tile, cheapest
from shoal.routing.shortlist import shortlist
from shoal.routing.words import why_missing

if TYPE_CHECKING:
    from random import Random

    from numpy.typing import NDArray
    from shoal.routing.columns import Columns
    from shoal.routing.view import View

__all__ = ["Hop", "Knowledge", "NoRoute", "Route", "RouteRequest", "Speed", "plan_route"]

SPREAD: Final = 0.1


def plan_route(view: View, request: RouteRequest, now: float, rng: Random) -> Route | NoRoute:
    """Return a route over the request's blocks that costs at most (1 + SPREAD) times the cheapest, or NoRoute.

    That bound holds for decoding over up to `shortlist.ALL` usable peers; beyond, candidates are short-listed per
    block, and the prompt's pipeline is searched in steps (see `search`). The same view, request, `now` and state of
    `rng` give the same route. Raises ValueError for blocks that the model does not have, and nothing on account of
    what peers announce.
    """
    if request.stop > view.n_blocks:
        raise ValueError(f"blocks {request.start}:{request.stop} are not in a model of {view.n_blocks} blocks")
    columns = view.columns
    able = usable(columns, request, now)
    missing = _missing(columns, able, request)
    if missing:
        return NoRoute(missing, why_missing(columns, request, missing, now))
    costs = price(columns, request, np.flatnonzero(able))
    jitter = np.array([1.0 + SPREAD * rng.random() for _ in costs.rows])
    jittered = replace(costs, weight=costs.weight * jitter)
    chosen = shortlist(columns, jittered, request.stop - request.start)
    legs = between(columns, request.knowledge, costs.rows[chosen])
    tiles = cheapest(problem_of(select(jittered, chosen), legs, request.stop - request.start))
    if tiles is None:
        raise RuntimeError("every block has a usable holder and yet no route was found")
    return _route(columns, request, select(costs, chosen), legs, tiles)


def _missing(columns: Columns, able: NDArray[np.bool_], request: RouteRequest) -> tuple[int, ...]:
    change = np.zeros(request.stop - request.start + 1, dtype=np.int64)
    np.add.at(change, np.maximum(columns.start[able], request.start) - request.start, 1)
    np.add.at(change, np.minimum(columns.stop[able], request.stop) - request.start, -1)
    return tuple(int(block) + request.start for block in np.flatnonzero(np.cumsum(change[:-1]) == 0))


def select(costs: Costs, chosen: NDArray[np.int64]) -> Costs:
    """Return the costs of the peers at the places `chosen`."""
    arrays = ("rows", "start", "stop", "step_s", "stage_s", "visit_s", "leg_in_s", "leg_out_s", "weight")
    return replace(costs, **{name: getattr(costs, name)[chosen] for name in arrays})


def between(columns: Columns, knowledge: Knowledge, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the legs [from, to] in seconds between the peers `rows`, infinite from one to itself."""
    ids = [columns.ids[row] for row in rows]
    place = {peer_id: i for i, peer_id in enumerate(ids)}
    legs = np.full((len(ids), len(ids)), leg_s(columns, knowledge, "", ""))
    known = {(here, there) for row, here in zip(rows, ids, strict=True) for there in columns.rtts_s[row]}
    for here, there in known.union(knowledge.legs_s):
        i, j = place.get(here), place.get(there)
        if i is not None and j is not None:
            legs[i, j] = leg_s(columns, knowledge, here, there)
            legs[j, i] = leg_s(columns, knowledge, there, here)
    np.fill_diagonal(legs, np.inf)
    return legs


def problem_of(costs: Costs, legs: NDArray[np.float64], n_blocks: int) -> Problem:
    """Return the search problem over all of `costs`: seconds weighted by each peer's factor."""
    crossings, weight = costs.work.crossings, costs.weight
    return Problem(
        n_blocks=n_blocks,
        start=costs.start,
        stop=costs.stop,
        first=crossings * weight * (costs.leg_in_s + costs.visit_s),
        between=crossings * weight * (legs + costs.visit_s),
        last=crossings * costs.leg_out_s,
        block=weight * costs.block_s,
        stage=weight * costs.stage_s,
        waits=max(0, costs.work.chunks - 1),
    )


def _route(
    columns: Columns, request: RouteRequest, costs: Costs, legs: NDArray[np.float64], tiles: list[Tile]
) -> Route:
    hops = tuple(
        Hop(columns.ids[costs.rows[tile.who]], tile.start + request.start, tile.stop + request.start) for tile in tiles
    )
    crossing_s, stages_s, step_s = _times(costs, legs, tiles)
    work = costs.work
    token_s = crossing_s + step_s
    prefill_s = crossing_s + sum(stages_s) + (work.chunks - 1) * max(stages_s) if work.chunks else 0.0
    return Route(hops, work.steps * token_s + prefill_s, prefill_s, token_s)


def _times(costs: Costs, legs: NDArray[np.float64], tiles: list[Tile]) -> tuple[float, list[float], float]:
    """Unweighted seconds: all legs and visits once, the stage of each hop, the compute of one token."""
    entries = [costs.leg_in_s[tiles[0].who], *(legs[a.who, b.who] for a, b in pairwise(tiles))]
    crossing_s = float(sum(entries) + costs.leg_out_s[tiles[-1].who] + sum(costs.visit_s[tile.who] for tile in tiles))
    stages_s = [float(costs.stage_s[tile.who]) * (tile.stop - tile.start) for tile in tiles]
    return crossing_s, stages_s, sum(float(costs.step_s[tile.who]) * (tile.stop - tile.start) for tile in tiles)
