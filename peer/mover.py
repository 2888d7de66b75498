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

from shoal.blocks.errors import BlocksError
from shoal.dht.errors import DhtError
from shoal.peer.choose import LOADING_S, SETTLED_S, look_up
from shoal.routing.knowledge import Knowledge, Speed, middle_leg_s
from shoal.routing.rebalance import Move, Stake, moved, rebalance, yields_to
from shoal.routing.view import View

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from shoal.dht.directory import Directory
    from shoal.peer.announcer import Announcer
    from shoal.peer.choose import Survey

    Fetch = Callable[[range], Awaitable[None]]

logger = logging.getLogger("shoal.peer")

STALE_S = 10.0  # a view that is older has to be looked at again


@dataclass(frozen=True, slots=True)
class Habit:
    """A look about every `period_s` seconds, by chance of `rng`, so that peers do not look together; `loading_s` is
    what loading this peer's blocks took. `wall`: seconds since the epoch."""

    period_s: float
    loading_s: float
    rng: random.Random = field(default_factory=random.Random)
    wall: Callable[[], float] = time.time


class Mover:
    """Watches the swarm of `n_blocks` for one running peer. `fetch` brings blocks to this machine: before the peer says
    that it moves, since that may take hours, in which it serves on. What cannot be had is no reason to give up what is
    served now. `survey` measures how far others are, if it comes to a move."""

    def __init__(
        self,
        directory: Directory,
        announcer: Announcer,
        n_blocks: int,
        habit: Habit,
        fetch: Fetch | None = None,
        survey: Survey | None = None,
    ) -> None:
        self._directory, self._announcer, self._n_blocks, self.habit = directory, announcer, n_blocks, habit
        self._fetch, self._survey = fetch, survey

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
        seed = self.habit.rng.getrandbits(64)
        before = await self._view()
        rtts_s: Mapping[str, float] = dict(self._announcer.announcement().rtts)  # of the links that stand
        found = self._find(before, seed, rtts_s)
        if found is not None and self._survey is not None:  # where exactly is worth knowing the distances
            rtts_s = await self._survey(before, rtts_s)
            found = self._find(before, seed, rtts_s)
        if found is None:
            return None
        if self._fetch is not None:
            began = asyncio.get_running_loop().time()
            try:
                await self._fetch(range(found.start, found.stop))
            except BlocksError as error:
                logger.warning("staying, since blocks %d:%d cannot be had: %s", found.start, found.stop, error)
                return None
            if asyncio.get_running_loop().time() - began > STALE_S:
                before = await self._view()
                again = self._find(before, seed, rtts_s)
                if again is None or (again.start, again.stop) != (found.start, found.stop):
                    logger.info("staying: the swarm changed while blocks %d:%d were fetched", found.start, found.stop)
                    return None
            if self._announcer.state != "online":
                return None
        if not await self._goes(found, before):
            logger.info("another peer moves from these blocks; staying")
            await self._announcer.announce()
            return None
        logger.info("moving to blocks %d:%d: %s", found.start, found.stop, found.reason)
        return found

    async def _goes(self, found: Move, before: View) -> bool:
        """Say where this peer goes, and whether others leave it the right of way. Only then does it stay said."""
        announcer, goes = self._announcer, False
        announcer.moving = range(found.start, found.stop)
        try:
            await announcer.announce()
            await asyncio.sleep(SETTLED_S)
            me = moved(announcer.announcement(), found.start, found.stop)
            goes = not yields_to(before, await self._view(), me)
        finally:
            if not goes:
                announcer.stay()
        return goes

    def _find(self, view: View, seed: int, rtts_s: Mapping[str, float]) -> Move | None:
        """What this peer should do now, by that view and those round trips; of equally good moves `seed` chooses."""
        me = self._announcer.announcement()
        stake, speed = Stake(self.habit.loading_s, me.queue), Speed(me.decode_s, me.prefill_s)
        rng = random.Random(seed)  # noqa: S311 - spreads movers, no secret
        knowledge = Knowledge(rtts_s=rtts_s, default_leg_s=middle_leg_s(rtts_s))
        found = rebalance(view, me, speed, stake, rng, knowledge)
        if isinstance(found, Move):
            return found
        logger.debug("staying: %s", found.reason)
        return None

    async def _view(self) -> View:
        """All peers of our revision, this one as it is now."""
        me = self._announcer.announcement()
        others = await look_up(self._directory, me.peer_id, me.revision, self._n_blocks, self.habit.wall())
        mine = replace(me, expiry=others.at + LOADING_S)
        peers = sorted((*others.peers, mine), key=lambda peer: peer.peer_id)
        return View(others.n_blocks, tuple(peers), others.at)
