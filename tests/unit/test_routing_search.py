"""The search against all tilings, where the cheapest path would use a candidate twice or stages must be short."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from shoal.routing import search
from shoal.routing.search import Hauls, Problem, Tile, cheapest, total_of


def problem(rng: random.Random, waits: int = 0, *, hauls: bool = False) -> Problem:
    """Five blocks, five candidates; short legs and very unequal speeds, so that going back and forth would pay.

    `hauls`: sending a chunk takes as long as computing it.
    """
    size, n_blocks = 5, 5
    start = np.array([0, *(rng.randrange(n_blocks) for _ in range(size - 1))])
    stop = np.array([n_blocks, *(rng.randint(begin + 1, n_blocks) for begin in start[1:])])
    legs = np.array([[rng.uniform(0.1, 0.5) for _ in range(size)] for _ in range(size)])
    np.fill_diagonal(legs, np.inf)
    block = np.array([rng.choice([0.2, 1.0, 5.0]) for _ in range(size)])
    ends = np.full(size, 0.3)
    sent = None
    if hauls:
        sent = Hauls(*(np.array([rng.choice([0.1, 1.0, 4.0]) for _ in range(n)]) for n in (size, size * size, size)))
        sent = Hauls(sent.first, sent.between.reshape(size, size), sent.last)
    return Problem(n_blocks, start, stop, ends, legs, ends, block, block, waits, sent)


def tilings(asked: Problem, start: int = 0, used: tuple[int, ...] = ()):
    if start == asked.n_blocks:
        yield []
        return
    for who in range(asked.start.size):
        if who not in used and asked.start[who] <= start:
            for stop in range(start + 1, int(asked.stop[who]) + 1):
                for rest in tilings(asked, stop, (*used, who)):
                    yield [Tile(who, start, stop), *rest]


def cost(asked: Problem, tiles: list[Tile]) -> float:
    legs = sum(asked.between[a.who, b.who] for a, b in pairwise(tiles))
    work = [asked.block[tile.who] * (tile.stop - tile.start) for tile in tiles]
    stages = list(work)
    if asked.hauls is not None:
        stages += [asked.hauls.between[a.who, b.who] for a, b in pairwise(tiles)]
        stages += [asked.hauls.first[tiles[0].who], asked.hauls.last[tiles[-1].who]]
    return asked.first[tiles[0].who] + legs + sum(work) + asked.last[tiles[-1].who] + asked.waits * max(stages)


def test_exact_without_repeats_even_where_repeats_would_pay(monkeypatch):
    looked_at = []
    first_repeat = search._repeat
    monkeypatch.setattr(search, "_repeat", lambda tiles: looked_at.append(first_repeat(tiles)) or looked_at[-1])
    for seed in range(200):
        asked = problem(random.Random(seed))
        tiles = cheapest(asked)
        assert len({tile.who for tile in tiles}) == len(tiles)
        assert total_of(asked, tiles) == pytest.approx(cost(asked, tiles))
        assert total_of(asked, tiles) == pytest.approx(min(cost(asked, other) for other in tilings(asked)))
    assert sum(repeat is not None for repeat in looked_at) > 10


@pytest.mark.parametrize("waits", [1, 3, 20])
@pytest.mark.parametrize("hauls", [False, True])
def test_chunks_shorten_the_slowest_stage(waits, hauls):
    for seed in range(25):
        asked = problem(random.Random(seed), waits, hauls=hauls)
        best = min(cost(asked, other) for other in tilings(asked))
        assert total_of(asked, cheapest(asked)) <= best / search.CAP_FACTOR * (1 + 1e-9)


def test_when_branching_is_given_up_the_tiling_is_still_whole(monkeypatch):
    monkeypatch.setattr(search, "BRANCH_RUNS", 1)
    for seed in range(60):
        tiles = cheapest(problem(random.Random(seed)))
        assert [block for tile in tiles for block in range(tile.start, tile.stop)] == list(range(5))
        assert len({tile.who for tile in tiles}) == len(tiles)


def test_a_block_that_nobody_holds_has_no_tiling():
    asked = problem(random.Random(1))
    asked.stop[:] = np.minimum(asked.stop, 4)
    asked.start[:] = np.minimum(asked.start, 3)
    assert cheapest(asked) is None
