"""Owns the search for the cheapest tiling of blocks by hops. Arrays in, tiles out: knows no peers, time or chance.

Dynamic programming over the states (boundary between blocks, candidate whose hop ends there). Compute is linear in a
hop's length, so a candidate's best start for a given end is the minimum of one column; a hop may begin and end anywhere
in its candidate's span. Two things are not additive and are settled above the program, each by a few more runs of it:
no candidate serves twice (branch and bound), chunks of a prompt wait for the slowest stage (a falling cap on stages).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BRANCH_RUNS: Final = 12  # tilings looked at to keep a candidate from serving twice, before settling for a good one
CAPPED_RUNS: Final = 4  # the same, for each lower cap
CAP_STEPS: Final = 6  # tries with a lower cap on the slowest stage
CAP_FACTOR: Final = 0.8


class Tile(NamedTuple):
    """Blocks `start`..`stop` of the request served by the candidate number `who`."""

    who: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Hauls:
    """What one prompt chunk takes to be sent: `first` [P] into the route, `between` [P, P] from row to column, `last`
    [P] out of the route."""

    first: NDArray[np.float64]
    between: NDArray[np.float64]
    last: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Problem:
    """Tile blocks 0..`n_blocks` with P candidates; every array holds costs of one unit, all positive.

    `start`, `stop` [P]: spans. `first` [P]: cost of entering the route there. `between` [P, P]: cost of entering q
    (column) from p (row), infinite on the diagonal. `last` [P]: cost of leaving the route. `block` [P]: cost per block.
    `stage` [P]: time per block of one prompt chunk, and `waits`: how often the slowest stage, a hop's or a leg's, is
    paid on top. `hauls`: the legs' stages, None if they take no time.
    """

    n_blocks: int
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    first: NDArray[np.float64]
    between: NDArray[np.float64]
    last: NDArray[np.float64]
    block: NDArray[np.float64]
    stage: NDArray[np.float64]
    waits: int = 0
    hauls: Hauls | None = None


def cheapest(problem: Problem) -> list[Tile] | None:
    """Return the cheapest tiling, no candidate twice; None if some block is held by no candidate.

    Exact without `waits` as long as BRANCH_RUNS suffice; with them within 1 / CAP_FACTOR as long as CAP_STEPS do.
    """
    best = _without_repeats(problem, _earliest(problem), BRANCH_RUNS)
    if best is None:
        return None
    tiles = best
    for _ in range(CAP_STEPS if problem.waits else 0):
        cap = _slowest(problem, tiles) * CAP_FACTOR
        limit = total_of(problem, best)  # what costs as much without any waiting cannot be better with it
        found = _without_repeats(_capped(problem, cap), _earliest(problem, cap), CAPPED_RUNS, limit)
        if found is None or _sum(problem, found) >= limit:
            break
        tiles = found
        best = min(best, tiles, key=lambda tiling: total_of(problem, tiling))
    return best


def _capped(problem: Problem, cap: float) -> Problem:
    """The problem without the legs over which a chunk takes longer than `cap`."""
    hauls = problem.hauls
    if hauls is None:
        return problem
    return replace(
        problem,
        first=np.where(hauls.first > cap, np.inf, problem.first),
        between=np.where(hauls.between > cap, np.inf, problem.between),
        last=np.where(hauls.last > cap, np.inf, problem.last),
    )


def _earliest(problem: Problem, cap: float | None = None) -> NDArray[np.int64]:
    """[n_blocks + 1, P]: where a hop that ends at this boundary may begin at the earliest; right there if none may."""
    ends = np.arange(problem.n_blocks + 1)[:, None]
    begins = np.broadcast_to(problem.start, (problem.n_blocks + 1, problem.start.size))
    if cap is not None:
        begins = np.maximum(begins, ends - np.floor(cap / problem.stage).astype(np.int64))
    return np.where((ends > problem.start) & (ends <= problem.stop), np.minimum(begins, ends), ends)


def _shortest(problem: Problem, earliest: NDArray[np.int64]) -> tuple[float, list[Tile]] | None:
    """One run of the program: the cheapest tiling within `earliest`, candidates may repeat; None if there is none."""
    n_blocks, size = problem.n_blocks, problem.start.size
    reach = np.full((n_blocks, size), np.inf)  # least cost to enter at a boundary, less the blocks before it
    came_from = np.zeros((n_blocks, size), dtype=np.int64)
    began = np.zeros((n_blocks + 1, size), dtype=np.int64)
    ends = np.arange(n_blocks + 1)[:, None]
    may_end, may_start = earliest < ends, (problem.start <= ends) & (ends < problem.stop)
    reach[0] = np.where(problem.start == 0, problem.first, np.inf)
    lowest, at = np.full(size, np.inf), np.zeros(size, dtype=np.int64)  # of `reach` so far, and where that is
    for end in range(1, n_blocks + 1):
        enders = may_end[end].nonzero()[0]
        if not enders.size:
            return None
        better = reach[end - 1] < lowest
        lowest[better], at[better] = reach[end - 1, better], end - 1
        _look_again(reach, lowest, at, earliest[end], enders, end)
        began[end, enders] = at[enders]
        done = lowest[enders] + end * problem.block[enders]
        if end == n_blocks:
            return _trace(done + problem.last[enders], enders, began, came_from)
        starters = may_start[end].nonzero()[0]
        entering = done[:, None] + problem.between[enders[:, None], starters]
        via = entering.argmin(axis=0)
        reach[end, starters] = entering.min(axis=0) - end * problem.block[starters]
        came_from[end, starters] = enders[via]
    return None


def _look_again(
    reach: NDArray[np.float64],
    lowest: NDArray[np.float64],
    at: NDArray[np.int64],
    begins: NDArray[np.int64],
    enders: NDArray[np.int64],
    end: int,
) -> None:
    """Where the lowest so far lies before what a hop may begin with now, find the lowest of the rest. What a hop may
    begin with never moves back as `end` grows."""
    passed = enders[at[enders] < begins[enders]]
    if not passed.size:
        return
    low = int(begins[passed].min())
    rows = np.arange(low, end)[:, None]
    window = np.where(rows >= begins[passed], reach[low:end, passed], np.inf)
    at[passed] = low + window.argmin(axis=0)
    lowest[passed] = window.min(axis=0)


def _trace(
    total: NDArray[np.float64], enders: NDArray[np.int64], began: NDArray[np.int64], came_from: NDArray[np.int64]
) -> tuple[float, list[Tile]] | None:
    winner = int(total.argmin())
    if not np.isfinite(total[winner]):
        return None
    tiles: list[Tile] = []
    end, who = began.shape[0] - 1, int(enders[winner])
    while end > 0:
        begin = int(began[end, who])
        tiles.append(Tile(who, begin, end))
        end, who = begin, int(came_from[begin, who]) if begin else who
    return float(total[winner]), tiles[::-1]


def _without_repeats(
    problem: Problem, earliest: NDArray[np.int64], runs: int, limit: float = np.inf
) -> list[Tile] | None:
    """Best first: if a candidate serves before and after block m, then it serves only before, only after, or m too.
    None if nothing costs less than `limit`."""
    order, allowed = count(), earliest
    tiles: list[Tile] = []
    found = _shortest(problem, earliest)
    open_ = [(found[0], next(order), found[1], earliest)] if found and found[0] < limit else []
    for _ in range(runs):
        if not open_:
            return None
        _, _, tiles, earliest = heapq.heappop(open_)
        repeat = _repeat(tiles)
        if repeat is None:
            return tiles
        for branch in _branches(earliest, *repeat):
            if (found := _shortest(problem, branch)) is not None and found[0] < limit:
                heapq.heappush(open_, (found[0], next(order), found[1], branch))
    ways = _absorb(tiles), _absorb(_shared_out(problem, tiles, allowed))
    return min(ways, key=lambda tiling: total_of(problem, tiling))


def _shared_out(problem: Problem, tiles: list[Tile], earliest: NDArray[np.int64]) -> list[Tile]:
    """Give every hop of a candidate that serves already to the cheapest that does not, if one may: among equals the
    program goes to and fro between two."""
    free, shared = np.ones(problem.start.size, dtype=np.bool_), list(tiles)
    free[[tile.who for tile in tiles]] = False
    for i, tile in enumerate(tiles):
        if all(tile.who != earlier.who for earlier in shared[:i]):
            continue
        able = np.flatnonzero(free & (earliest[tile.stop] <= tile.start))
        if able.size:
            entering = problem.between[shared[i - 1].who, able]
            leaving = problem.last[able] if i + 1 == len(tiles) else problem.between[able, tiles[i + 1].who]
            who = int(able[np.argmin(problem.block[able] * (tile.stop - tile.start) + entering + leaving)])
            shared[i], free[who] = Tile(who, tile.start, tile.stop), False
    return shared


def _repeat(tiles: list[Tile]) -> tuple[int, int] | None:
    """The first candidate that serves twice and the first block it leaves out between."""
    left_at: dict[int, int] = {}
    for tile in tiles:
        if tile.who in left_at:
            return tile.who, left_at[tile.who]
        left_at[tile.who] = tile.stop
    return None


def _branches(earliest: NDArray[np.int64], who: int, block: int) -> list[NDArray[np.int64]]:
    ends = np.arange(earliest.shape[0])
    before, after, across = earliest.copy(), earliest.copy(), earliest.copy()
    before[block + 1 :, who] = ends[block + 1 :]
    after[:, who] = np.minimum(ends, np.maximum(after[:, who], block + 1))
    across[block + 1 :] = np.maximum(across[block + 1 :], block + 1)
    across[:, who] = earliest[:, who]
    return [before, after, across]


def _absorb(tiles: list[Tile]) -> list[Tile]:
    """Give what lies between two hops of one candidate to that candidate: it holds all of it, spans having no holes."""
    kept: list[Tile] = []
    for tile in tiles:
        same = next((i for i, earlier in enumerate(kept) if earlier.who == tile.who), None)
        if same is not None:
            tile = Tile(tile.who, kept[same].start, tile.stop)
            del kept[same:]
        kept.append(tile)
    return kept


def _slowest(problem: Problem, tiles: list[Tile]) -> float:
    slowest = max(float(problem.stage[tile.who]) * (tile.stop - tile.start) for tile in tiles)
    if (hauls := problem.hauls) is None:
        return slowest
    ends = (float(hauls.first[tiles[0].who]), float(hauls.last[tiles[-1].who]))
    return max(slowest, *ends, *(float(hauls.between[a.who, b.who]) for a, b in pairwise(tiles)))


def total_of(problem: Problem, tiles: list[Tile]) -> float:
    """Return the cost of `tiles`, the waiting for the slowest stage included."""
    return _sum(problem, tiles) + problem.waits * _slowest(problem, tiles)


def _sum(problem: Problem, tiles: list[Tile]) -> float:
    cost = float(problem.first[tiles[0].who]) + float(problem.last[tiles[-1].who])
    cost += sum(float(problem.block[tile.who]) * (tile.stop - tile.start) for tile in tiles)
    return cost + sum(float(problem.between[a.who, b.who]) for a, b in pairwise(tiles))
