"""Searching the key space over disjoint paths. Knows how to walk, not how to ask: no sockets, no records' meaning.

S/Kademlia (Baumgart and Mies, 2007): the seeds are dealt to 4 paths, and a node is asked by one path only, so a hostile
node can mislead the path that meets it but not the others.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shoal.dht.keys import distance, node_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from shoal.dht.foreign import PeerID
    from shoal.dht.protocol import Found

    Ask = Callable[[PeerID, bytes], Awaitable[Found | None]]

PATHS = 4
WIDTH = 5  # a path ends when the 5 nearest nodes it knows have answered: 20 nodes over all paths
MAX_ASKED_PER_PATH = 24
LATE_S = 0.5  # a path goes on to its next node meanwhile: anybody may name nodes that never answer


@dataclass
class Search:
    """One key's search. records: sealed, unverified. answered: the nodes asked that replied."""

    key: bytes
    ask: Ask
    records: set[bytes] = field(default_factory=set)
    answered: list[PeerID] = field(default_factory=list)
    _claimed: set[PeerID] = field(default_factory=set)

    async def run(self, seeds: Sequence[PeerID], me: PeerID) -> None:
        """Walk all paths to their ends. Few seeds are asked first, and whom they name is dealt out: who has just come
        knows a bootstrap node or two, and a single path could be misled."""
        self._claimed.add(me)
        known = list(seeds)
        if len(known) < PATHS:
            self._claimed.update(seeds)
            for named in await asyncio.gather(*map(self._ask, seeds)):
                known += named or ()
        ordered = sorted(set(known) - self._claimed, key=self._distance)
        async with asyncio.TaskGroup() as tasks:
            for path in range(PATHS):
                tasks.create_task(self._walk(ordered[path::PATHS]))

    def nearest(self, count: int) -> list[PeerID]:
        """The nodes nearest to the key that answered, nearest first."""
        return sorted(self.answered, key=self._distance)[:count]

    async def _walk(self, known: list[PeerID]) -> None:
        mine: list[PeerID] = []
        late: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as calls:  # a path's end waits for what is late
            for _ in range(MAX_ASKED_PER_PATH):
                while (peer := self._next(known, mine)) is None and late:
                    _, late = await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
                if peer is None:
                    return
                self._claimed.add(peer)
                call = calls.create_task(self._hear(peer, known, mine))
                _, pending = await asyncio.wait({call}, timeout=LATE_S)
                late |= pending

    async def _hear(self, peer: PeerID, known: list[PeerID], mine: list[PeerID]) -> None:
        named = await self._ask(peer)
        if named is not None:
            mine.append(peer)
            known.extend(named)

    async def _ask(self, peer: PeerID) -> list[PeerID] | None:
        """Whom a node names; None if it does not answer."""
        found = await self.ask(peer, self.key)
        if found is None:
            return None
        self.answered.append(peer)
        self.records.update(found.records)
        return found.peers

    def _next(self, known: list[PeerID], mine: list[PeerID]) -> PeerID | None:
        """The nearest node that nobody has asked, if it is nearer than the worst of this path's 5 best."""
        free = [peer for peer in set(known) if peer not in self._claimed]
        if not free:
            return None
        peer = min(free, key=self._distance)
        best = sorted(map(self._distance, mine))[:WIDTH]
        return peer if len(best) < WIDTH or self._distance(peer) < best[-1] else None

    def _distance(self, peer: PeerID) -> int:
        return distance(self.key, node_key(peer.to_bytes()))
