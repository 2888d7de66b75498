"""Which peers of the view have let this client in. An announcement may be of a peer that is not there: such ghosts are
told from peers by trying many at once, before anybody waits for one of them. Knows no sessions and no routes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shoal.routing.view import View

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable
    from collections.abc import Set as AbstractSet

    from shoal.dht.directory import Nodes
    from shoal.peer.pool import ChannelPool
    from shoal.routing.announcement import Announcement
    from shoal.routing.route import Hop

AT_ONCE = 512  # peers that are tried together
ENOUGH = 64  # as many will do where those that are surely there hold every block
A_FEW = 8  # strangers that are tried while others lead to the first token
HEAD_START_S = 0.3  # of those that are told to be there, before strangers; most links take less
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
        self._view, self._more = View(0), False
        self._likely: frozenset[str] = frozenset()  # to be there: they answered, or others have measured the way
        self._told: frozenset[str] = frozenset()  # those, and whom nodes named, which a single one may do to anybody
        self._later: list[Announcement] = []  # strangers that are tried if the others do not answer
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

    def greet(self, view: View, nodes: Nodes, *, more: bool = False) -> None:
        """Try peers that were not tried lately. `more`: a greater view is about to come."""
        vouched = {name for peer in view.peers for name, _ in peer.rtts}
        some = A_FEW if more or self._more else ENOUGH
        self._view, self._more = view, more
        self._likely = nodes.answering | vouched
        self._told = self._likely | nodes.named
        self._news.set()
        now, names = self._now(), {peer.peer_id for peer in view.peers}
        self.met &= names | {*self._pool.peers()}  # a record that one look-up missed closes no link
        self._asked = {name: at for name, at in self._asked.items() if name in names and now - at < ASK_AGAIN_S}
        fresh = [peer for peer in view.peers if peer.peer_id not in self.met | self._asked.keys()]
        first, self._later = self._choose(fresh, nodes.answering, some)
        self._try(first)

    async def settle(self, start: int, stop: int) -> None:
        """Wait until peers that were met hold blocks `[start, stop)` and others that may be there have had their
        chance, or until nobody is being tried any more (a connect has an end)."""
        begin = self._now()
        while (self._trying or self._more or self._later) and not self._hold(self.met, start, stop):
            if not self._trying & self._told or self._now() - begin >= HEAD_START_S:
                self._try(self._later)
                self._later = []
            await self._next_news(HEAD_START_S if self._later else None)
        end = self._now() + PATIENCE * (self._now() - begin)
        while self._now() < end and self._awaited(start, stop):
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

    def _choose(
        self, fresh: list[Announcement], answering: frozenset[str], some: int
    ) -> tuple[list[Announcement], list[Announcement]]:
        """Whom to try now, and whom if those do not answer. Of many, those that answered us, then those whose distance
        others have announced, if they hold every block: a ghost has none unless somebody lies for it. The others then
        have time, and come some at a time."""
        likely = self._likely | self.met
        order = fresh
        if len(fresh) > ENOUGH:
            order, held = self._rng.sample(fresh, len(fresh)), self._hold(likely)
            order.sort(key=lambda peer: (peer.peer_id not in answering, peer.peer_id not in likely))
            order = ([peer for peer in order if peer.peer_id in likely] or order)[:ENOUGH] if held else order[:AT_ONCE]
        told = [peer for peer in order if peer.peer_id in likely | self._told]
        strangers = [peer for peer in order if peer.peer_id not in likely | self._told]
        if self._hold(self.met):
            return told + strangers[:some], []
        return (told + strangers[:some], strangers[some:]) if self._hold(self._told) else (order, [])

    def _try(self, peers: Iterable[Announcement]) -> None:
        for peer in peers:
            self._asked[peer.peer_id] = self._now()
            self._trying.add(peer.peer_id)
            self._pool.connect(peer.peer_id, peer.addrs)

    def _awaited(self, start: int, stop: int) -> AbstractSet[str]:
        """Of those that are being tried, who is worth some time."""
        return self._trying & self._told if self._hold(self._told, start, stop) else self._trying

    def _hold(self, names: AbstractSet[str], start: int = 0, stop: int | None = None) -> bool:
        """Whether these peers hold blocks `[start, stop)`."""
        those = tuple(peer for peer in self._view.peers if peer.peer_id in names)
        return all(View(self._view.n_blocks, those, self._view.at).coverage()[start:stop])

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
