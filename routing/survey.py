"""Owns whose distances matter to a peer that looks for a place. Pure; knows no network and measures nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from shoal.routing.knowledge import Knowledge
from shoal.routing.pace import candidates

if TYPE_CHECKING:
    from random import Random

    from shoal.routing.announcement import Announcement
    from shoal.routing.view import View

MOST: Final = 32


def worth_measuring(view: View, rng: Random, most: int = MOST) -> list[Announcement]:
    """Return at most `most` peers of `view` over which tokens are likely to go, all blocks having their share."""
    columns = view.columns
    able = np.flatnonzero(columns.online & (columns.expiry > view.at))
    if not able.size:
        return []
    rows = candidates(columns, Knowledge(), able, view.n_blocks).rows
    left = [view.peers[row] for row in rows]
    if len(left) <= most:
        return left
    rng.shuffle(left)
    asked: list[Announcement] = []
    known = np.zeros(view.n_blocks)
    while len(asked) < most:
        peer = min(left, key=lambda peer: float(known[peer.start : peer.stop].min()))
        left.remove(peer)
        asked.append(peer)
        known[peer.start : peer.stop] += 1
    return asked
