"""When a running peer looks whether other blocks need it more, and how it goes: one at a time, by right of way.

Decides by `routing/rebalance.py`; knows the directory and the announcer, no sockets and no device.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from shoal.dht.errors import DhtError
from shoal.peer.choose import LOADING_S, SETTLED_S, look_up
from shoal.routing.knowledge import Knowledge, Speed
from shoal.routing.rebalance import Move, Stake, moved, rebalance, yields_to
from shoal.routing.view import View

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.dht.directory import Directory
    from shoal.peer.announcer import Announcer

logger = logging.getLogger("shoal.peer")


@dataclass(frozen=True, slots=True)
class Habit:
    """A look about every `period_s` seconds, by chance of `rng`, so that peers do not look together; `loading_s` is
    what loading this peer's blocks took. `wall`: seconds since the epoch."""

    period_s: float
    loading_s: float
    rng: random.Random = field(default_factory=random.Random)
    wall: Callable[[], float] = time.time


class Mover:
    """Watches the swarm of `n_blocks` for one running peer."""

    def __init__(self, directory: Directory, announcer: Announcer, n_blocks: int, habit: Habit) -> None:
        self._directory, self._announcer, self._n_blocks, self.habit = directory, announcer, n_blocks, habit

    async def run(self) -> Move:
        """Wait until this peer should move; it is announced as joining there then, and no longer where it is."""
        while True:
            await asyncio.sleep(self.habit.period_s * self.habit.rng.uniform(0.5, 1.5))
            if self._announcer.state != "online":
                continue  # paused: others do not count on these blocks, and nothing is loaded now
            try:
                if (move := await self.look()) is not None:
                    return move
            except DhtError as error:
                logger.warning("could not look whether to move: %s", error)

    async def look(self) -> Move | None:
        """Look once: where to go, if it pays and this peer has the right of way."""
        before = await self._view()
        me = self._announcer.announcement()
        stake = Stake(self.habit.loading_s, me.queue)
        speed = Speed(me.decode_s, me.prefill_s)
        found = rebalance(before, me, speed, stake, self.habit.rng, Knowledge(rtts_s=dict(me.rtts)))
        if not isinstance(found, Move):
            logger.debug("staying: %s", found.reason)
            return None
        self._announcer.moving = range(found.start, found.stop)
        await self._announcer.announce()
        await asyncio.sleep(SETTLED_S)
        if yields_to(before, await self._view(), moved(me, found.start, found.stop)):
            logger.info("another peer moves from these blocks; staying")
            self._announcer.moving = None
            await self._announcer.announce()
            return None
        logger.info("moving to blocks %d:%d: %s", found.start, found.stop, found.reason)
        return found

    async def _view(self) -> View:
        """All peers of our revision, this one as it is now."""
        me = self._announcer.announcement()
        others = await look_up(self._directory, me.peer_id, me.revision, self._n_blocks, self.habit.wall())
        mine = replace(me, expiry=others.at + LOADING_S)
        peers = sorted((*others.peers, mine), key=lambda peer: peer.peer_id)
        return View(others.n_blocks, tuple(peers), others.at)
