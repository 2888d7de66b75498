"""Which peers of the view have let this client in. An announcement may be of a peer that is not there: such ghosts are
told from peers by trying many at once, before anybody waits for one of them. Knows no sessions and no routes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shoal.routing.view import View

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from shoal.peer.pool import ChannelPool
    from shoal.routing.announcement import Announcement
    from shoal.routing.route import Hop

AT_ONCE = 512  # peers that are tried together
ENOUGH = 64  # as many will do where those that are surely there hold every block
PATIENCE = 0.5  # once those that answered hold every block, the others get so much of the time that it took
ASK_AGAIN_S = 30.0
UNUSED_S = 30.0


class Acquaintance:
    """Tries peers over `pool`, which must report to `opened` and `lost`. `met`: those that let us in."""

    def __init__(self, pool: ChannelPool, clock: Callable[[], float], rng: random.Random) -> None:
        self.met: set[str] = set()
        self._pool, self._now, self._rng = pool, clock, rng
        self._asked: dict[str, float] = {}  # peers of the view, and when they were tried last
        self._trying: set[str] = set()
        self._used: dict[str, float] = {}  # open links, and when a session last needed them
        self._news = asyncio.Event()

    def opened(self, peer_id: str) -> None:
        """The link to a peer stands."""
        self.met.add(peer_id)
        self._heard(peer_id)

    def lost(self, peer_id: str) -> None:
        """The link to a peer ended, or could not be opened."""
        self._heard(peer_id)

    def late(self, peer_id: str) -> None:
        """A peer takes long to let us in: until it has, others come first."""
        self.met.discard(peer_id)

    def greet(self, view: View, answering: frozenset[str]) -> None:
        """Try peers that were not tried lately. `answering`: those that we have heard from by other ways."""
        now, names = self._now(), {peer.peer_id for peer in view.peers}
        self.met &= names | {*self._pool.peers()}  # a record that one look-up missed closes no link
        self._asked = {name: at for name, at in self._asked.items() if name in names and now - at < ASK_AGAIN_S}
        fresh = [peer for peer in view.peers if peer.peer_id not in self.met | self._asked.keys()]
        for peer in self._choose(view, fresh, answering):
            self._asked[peer.peer_id] = now
            self._trying.add(peer.peer_id)
            self._pool.connect(peer.peer_id, peer.addrs)

    async def settle(self, view: View, start: int, stop: int) -> None:
        """Wait until peers that were met hold blocks `[start, stop)` and the others have had their chance, or until
        nobody is being tried any more (a connect has an end)."""
        begin = self._now()
        while self._trying and not self._hold(view, start, stop):
            await self._next_news(None)
        end = self._now() + PATIENCE * (self._now() - begin)
        while self._trying and self._now() < end:
            await self._next_news(end - self._now())

    def here(self, view: View, hops: Iterable[Hop]) -> bool:
        """Whether the links to these hops stand; those that have none are called."""
        names, addrs = [hop.peer_id for hop in hops], {peer.peer_id: peer.addrs for peer in view.peers}
        for name in names:
            self._pool.connect(name, addrs[name])
        return all(map(self._pool.stands, names))

    def strangers(self, view: View) -> frozenset[str]:
        """Peers that have not let us in."""
        return frozenset(peer.peer_id for peer in view.peers if peer.peer_id not in self.met)

    def tidy(self, needed: set[str]) -> None:
        """Close links that no session has needed for a while."""
        now = self._now()
        self._used = {name: now if name in needed else self._used.get(name, now) for name in self._pool.peers()}
        for name in [name for name, at in self._used.items() if now - at > UNUSED_S]:
            self._pool.drop(name)

    def _choose(self, view: View, fresh: list[Announcement], answering: frozenset[str]) -> list[Announcement]:
        """Of many, those that answered us, then those whose distance others have announced, if they hold every block: a
        ghost has none unless somebody lies for it. The others then have time, and come some at a time."""
        if len(fresh) <= ENOUGH:
            return fresh
        vouched = {name for peer in view.peers for name, _ in peer.rtts}
        order = self._rng.sample(fresh, len(fresh))
        order.sort(key=lambda peer: (peer.peer_id not in answering, peer.peer_id not in vouched))
        likely = self.met | answering | vouched
        there = tuple(peer for peer in view.peers if peer.peer_id in likely)
        if View(view.n_blocks, there, view.at).missing():
            return order[:AT_ONCE]
        return ([peer for peer in order if peer.peer_id in likely] or order)[:ENOUGH]

    def _hold(self, view: View, start: int, stop: int) -> bool:
        met = tuple(peer for peer in view.peers if peer.peer_id in self.met)
        return all(View(view.n_blocks, met, view.at).coverage()[start:stop])

    def _heard(self, peer_id: str) -> None:
        self._trying.discard(peer_id)
        self._news.set()

    async def _next_news(self, timeout_s: float | None) -> None:
        self._news.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return
