"""What a sequence consists of, token by token, and which of the remote caches serves it best. Integers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    Integers = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class History:
    """Tokens in order: `keys` name the inputs (token ids; below 0: stored embeddings), `positions` where they stand."""

    keys: Integers
    positions: Integers

    @classmethod
    def of(cls, keys: Sequence[int] | Integers, positions: Sequence[int] | Integers) -> History:
        """From numbers of equal count."""
        return cls(np.asarray(keys, dtype=np.int64), np.asarray(positions, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.keys)

    def __add__(self, more: History) -> History:
        return History(np.concatenate([self.keys, more.keys]), np.concatenate([self.positions, more.positions]))

    @property
    def is_text(self) -> bool:
        """Whether these are token ids that stand at 0, 1, 2, ..."""
        return bool((self.keys >= 0).all() and (self.positions == np.arange(len(self))).all())

    def first(self, count: int) -> History:
        """The first `count` tokens."""
        return self if count >= len(self) else History(self.keys[:count], self.positions[:count])

    def common(self, other: History) -> int:
        """How many tokens both begin with."""
        if self is other:
            return len(self)
        count = min(len(self), len(other))
        differs = (self.keys[:count] != other.keys[:count]) | (self.positions[:count] != other.positions[:count])
        return int(differs.argmax()) if differs.any() else count


EMPTY = History.of([], [])


def assign(wanted: Sequence[History], held: Sequence[History]) -> list[tuple[int | None, int]]:
    """For each wanted history the index of a held one, no index twice, and how many tokens of it stay; None where there
    are too few. As many tokens stay as can.

    Longest common beginnings are given away first. Common beginnings form a tree, and what one subtree takes of its own
    only ever costs others what they share with it anyway, so that this greedy order is the best assignment.
    """
    found: list[tuple[int | None, int]] = [(None, 0)] * len(wanted)
    rows, lanes = set(range(len(wanted))), set(range(len(held)))
    for index in range(min(len(wanted), len(held))):  # mostly each goes on where it is: no need to compare all
        if wanted[index].common(held[index]) == len(wanted[index]) == len(held[index]):
            found[index] = (index, len(wanted[index]))
            rows.discard(index)
            lanes.discard(index)
    pairs = sorted(((wanted[row].common(held[lane]), -row, -lane) for row in rows for lane in lanes), reverse=True)
    for count, row, lane in ((count, -row, -lane) for count, row, lane in pairs):
        if row in rows and lane in lanes:
            found[row] = (lane, count)
            rows.discard(row)
            lanes.discard(lane)
    return found
