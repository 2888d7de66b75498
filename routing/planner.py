"""Owns the choice of a route. Pure: handed `now` and a random generator; knows no network and keeps nothing.

Load spreads because every client sees each peer's cost raised by a random share of at most SPREAD: among near-equal
routes the choice is even, a route more than SPREAD dearer than the best is never taken, and queues do the rest.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
from shoal.routing.cost import Costs, price, usable
from shoal.routing.knowledge import Knowledge, Speed
from shoal.routing.legs import Legs, between
from shoal.routing.route import Hop, NoRoute, Route, RouteRequest
from shoal.routing.search import Hauls, Problem, Tile, cheapest
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
    jitter = 1.0 + SPREAD * np.random.default_rng(rng.getrandbits(64)).random(costs.rows.size)
    jittered = replace(costs, weight=costs.weight * jitter)
    chosen = shortlist(columns, jittered, request.stop - request.start)
    legs = between(columns, request.knowledge, costs.rows[chosen])
    tiles = cheapest(problem_of(jittered.at(chosen), legs, request.stop - request.start))
    if tiles is None:
        raise RuntimeError("every block has a usable holder and yet no route was found")
    return _route(columns, request, costs.at(chosen), legs, tiles)


def _missing(columns: Columns, able: NDArray[np.bool_], request: RouteRequest) -> tuple[int, ...]:
    change = np.zeros(request.stop - request.start + 1, dtype=np.int64)
    np.add.at(change, np.maximum(columns.start[able], request.start) - request.start, 1)
    np.add.at(change, np.minimum(columns.stop[able], request.stop) - request.start, -1)
    return tuple(int(block) + request.start for block in np.flatnonzero(np.cumsum(change[:-1]) == 0))


def problem_of(costs: Costs, legs: Legs, n_blocks: int) -> Problem:
    """Return the search problem over all of `costs`: seconds weighted by each peer's factor."""
    work, weight = costs.work, costs.weight
    return Problem(
        n_blocks=n_blocks,
        start=costs.start,
        stop=costs.stop,
        first=weight * costs.first_s,
        between=weight * (work.crossings * (legs.latency_s + costs.visit_s) + work.carried * legs.byte_s),
        last=costs.last_s,
        block=weight * costs.block_s,
        stage=weight * costs.stage_s,
        waits=max(0, work.chunks - 1),
        hauls=_hauls(costs, legs) if work.chunks > 1 and work.token_bytes else None,
    )


def _hauls(costs: Costs, legs: Legs) -> Hauls:
    """What one chunk takes to be sent over each leg."""
    size, weight = costs.work.chunk_bytes, costs.weight
    last = np.zeros(weight.size) if costs.work.home else size * costs.out.byte_s
    return Hauls(weight * size * costs.into.byte_s, weight * size * legs.byte_s, last)


def _route(columns: Columns, request: RouteRequest, costs: Costs, legs: Legs, tiles: list[Tile]) -> Route:
    hops = tuple(
        Hop(columns.ids[costs.rows[tile.who]], tile.start + request.start, tile.stop + request.start) for tile in tiles
    )
    work = costs.work
    token_s, prefill_s = _token_s(costs, legs, tiles), _prefill_s(costs, legs, tiles) if work.chunks else 0.0
    return Route(hops, work.steps * token_s + prefill_s, prefill_s, token_s)


def _token_s(costs: Costs, legs: Legs, tiles: list[Tile]) -> float:
    """Unweighted seconds of one token: all legs and visits, its bytes, its compute."""
    sent_s = costs.work.token_bytes * (sum(_byte_s(costs, legs, tiles)) + _last_byte_s(costs, tiles))
    return _crossing_s(costs, legs, tiles) + sent_s + sum(_per_hop(costs.step_s, tiles))


def _prefill_s(costs: Costs, legs: Legs, tiles: list[Tile]) -> float:
    """Unweighted seconds of the prompt: all legs and visits, every stage once, the slowest once more for each chunk
    behind the first. A stage is the computing of a hop or the sending of a leg."""
    work, back_s = costs.work, _last_byte_s(costs, tiles)
    stages_s = [*_per_hop(costs.stage_s, tiles), *(work.chunk_bytes * byte_s for byte_s in _byte_s(costs, legs, tiles))]
    home_s = work.token_bytes * back_s if work.home else 0.0
    if not work.home:
        stages_s.append(work.chunk_bytes * back_s)
    return _crossing_s(costs, legs, tiles) + sum(stages_s) + home_s + (work.chunks - 1) * max(stages_s)


def _crossing_s(costs: Costs, legs: Legs, tiles: list[Tile]) -> float:
    inner_s = sum(float(legs.latency_s[a.who, b.who]) for a, b in pairwise(tiles))
    ends_s = float(costs.into.latency_s[tiles[0].who] + costs.out.latency_s[tiles[-1].who])
    return ends_s + inner_s + sum(float(costs.visit_s[tile.who]) for tile in tiles)


def _byte_s(costs: Costs, legs: Legs, tiles: list[Tile]) -> list[float]:
    """Seconds a byte on every leg but the last."""
    return [float(costs.into.byte_s[tiles[0].who]), *(float(legs.byte_s[a.who, b.who]) for a, b in pairwise(tiles))]


def _last_byte_s(costs: Costs, tiles: list[Tile]) -> float:
    return float(costs.out.byte_s[tiles[-1].who])


def _per_hop(block_s: NDArray[np.float64], tiles: list[Tile]) -> list[float]:
    return [float(block_s[tile.who]) * (tile.stop - tile.start) for tile in tiles]
