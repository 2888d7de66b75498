"""Which remote cache serves which sequence: the greedy choice keeps as many tokens as the best of all choices."""

from __future__ import annotations

import itertools
import random

from shoal.client.model.history import EMPTY, History, assign


def history(keys: list[int], first: int = 0) -> History:
    return History.of(keys, range(first, first + len(keys)))


def test_common_beginnings() -> None:
    assert history([1, 2, 3]).common(history([1, 2, 4, 5])) == 2
    assert history([1, 2]).common(history([1, 2, 4])) == 2
    assert history([1, 2]).common(history([1, 2], first=1)) == 0
    assert EMPTY.common(history([1])) == 0
    assert len(history([1, 2]) + history([3], first=2)) == 3
    assert (history([1]) + history([2], first=1)).common(history([1, 2])) == 2


def test_as_many_tokens_stay_as_can() -> None:
    rng = random.Random(4)
    for _ in range(300):
        wanted = [history([rng.randrange(2) for _ in range(rng.randrange(7))]) for _ in range(rng.randrange(1, 5))]
        held = [history([rng.randrange(2) for _ in range(rng.randrange(7))]) for _ in range(rng.randrange(5))]
        found = assign(wanted, held)
        lanes = [lane for lane, _ in found if lane is not None]
        assert len(set(lanes)) == len(lanes) == min(len(wanted), len(held))
        assert all(kept == wanted[row].common(held[lane]) for row, (lane, kept) in enumerate(found) if lane is not None)
        padded = [*held, *[EMPTY] * len(wanted)]
        best = max(
            sum(row.common(lane) for row, lane in zip(wanted, order, strict=True))
            for order in itertools.permutations(padded, len(wanted))
        )
        assert sum(kept for _, kept in found) == best


def test_each_goes_on_where_it_is() -> None:
    rows = [history([1, 2]), history([1, 2]), history([1, 3])]
    assert assign(rows, rows) == [(0, 2), (1, 2), (2, 2)]
