"""What happens when, and to whom: a schedule drawn from a seed alone. No processes, no clock."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

# Six spans of the demo model's 12 blocks that hold each block three times. They do not line up, so that what one peer
# held may need two others.
SPANS = ((0, 6), (6, 12), (0, 7), (7, 12), (0, 5), (5, 12))
KINDS = ("kill", "hang", "drain", "restart")
FIRST_S = 2.0
BUSY = 0.75


@dataclass(frozen=True)
class Fault:
    """What befalls a peer at `at_s`: the first of `order` (their numbers) that can be spared then; with `busy`, one
    that serves somebody, if there is one.

    kill: SIGKILL, and started again `away_s` later. hang: SIGSTOP, SIGCONT `away_s` later; with `daemon` its network
    daemon stops as well, as when the whole machine hangs. drain: SIGTERM, and started again `away_s` after it has left.
    restart: SIGKILL and started again at once.
    """

    at_s: float
    kind: str
    order: tuple[int, ...]
    busy: bool
    away_s: float = 0.0
    daemon: bool = False

    def victim(self, online: Collection[int], used: Collection[int]) -> int | None:
        """Who it is: with everyone else that is `online` each block keeps a holder. None if nobody can be spared."""
        spared = [peer for peer in self.order if peer in online and _covered(set(online) - {peer})]
        busy = [peer for peer in spared if peer in used] if self.busy else []
        return next(iter(busy + spared), None)


def schedule(seed: int, seconds: float, every_s: float) -> list[Fault]:
    """One fault every `every_s` seconds."""
    rng = random.Random(seed)
    return [_draw(rng, FIRST_S + turn * every_s) for turn in range(max(1, int((seconds - FIRST_S) / every_s) + 1))]


def _draw(rng: random.Random, at_s: float) -> Fault:
    kind, order = rng.choice(KINDS), tuple(rng.sample(range(len(SPANS)), len(SPANS)))
    longest_s = {"kill": 4.0, "hang": 9.0, "drain": 4.0, "restart": 0.0}[kind]
    return Fault(
        at_s, kind, order, rng.random() < BUSY, longest_s * rng.random(), kind == "hang" and rng.random() < 0.5
    )


def _covered(peers: Collection[int]) -> bool:
    held = {block for peer in peers for block in range(*SPANS[peer])}
    return len(held) == max(stop for _, stop in SPANS)
