"""One look-up's questions to nodes: no record is fetched twice. Knows the calls, not how to walk or what records mean.

The node that is asked first gives a few records at once, to begin with. Then all say by digests which they hold, and
give those that nobody gave before: in a large swarm the nodes hold much the same, and a client's line would be busy
with copies. A node that claims digests and gives nothing hides nothing: whatever is still missing is fetched from every
other that has it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from shoal.dht.packing import LENGTH
from shoal.dht.protocol import REPLY_BUDGET_BYTES, Found
from shoal.dht.record import MAX_RECORD_BYTES
from shoal.dht.store import FEW, digest_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shoal.dht.foreign import PeerID
    from shoal.dht.protocol import ShoalDHT

HEAD_START_S = 0.5  # the others wait at most so long for the first one's records


class Listener(Protocol):
    """Who hears of a look-up while it goes on."""

    def found(self, raws: Iterable[bytes]) -> None:
        """Sealed records have come, not verified."""
        ...

    def answered(self, named: Iterable[PeerID]) -> None:
        """A node has given something of all that was asked, and named others."""
        ...


class Asking:
    """Asks each node for all keys in one call. `held`: sealed records that are not to be fetched again."""

    def __init__(
        self, protocol: ShoalDHT, keys: Sequence[bytes], held: Iterable[bytes] = (), listener: Listener | None = None
    ) -> None:
        self._protocol, self._keys, self._listener = protocol, keys, listener
        self._held = set(map(digest_of, held))
        # Calls are no part of the searches' group: one that is being cancelled takes no more tasks, and a search that
        # asks at that moment would make an error of it.
        self._calls: dict[PeerID, asyncio.Task[list[Found] | None]] = {}
        self._leader: PeerID | None = None
        self._few: asyncio.Task[list[Found] | None]
        self._lead: asyncio.Task[list[Found] | None] | None = None  # what comes after the few

    async def ask(self, peer: PeerID, key: bytes) -> Found | None:
        """What a node says about a key, less the records that are held; None if it does not answer."""
        if self._leader is None and not self._held:
            self._leader = peer
            self._few = asyncio.create_task(self._begin(peer))
            self._lead = asyncio.create_task(self._go_on(peer))
        if peer == self._leader:
            found = await self._few
        else:
            if peer not in self._calls:
                self._calls[peer] = asyncio.create_task(self._all(peer))
            found = await self._calls[peer]
        return found[self._keys.index(key)] if found is not None else None

    async def rest(self) -> list[Found]:
        """What the node that was asked first gave later, for each key."""
        found = await self._lead if self._lead is not None else None
        return found or [Found([], []) for _ in self._keys]

    async def close(self) -> None:
        """End the calls that nobody waits for any more."""
        calls = [*self._calls.values(), *([self._few, self._lead] if self._lead is not None else [])]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def _begin(self, peer: PeerID) -> list[Found] | None:
        found = self._noted(await self._protocol.call_few(peer, self._keys))
        if found is not None:
            self._tell(found)
        return found

    async def _go_on(self, peer: PeerID) -> list[Found] | None:
        few = await self._few
        return await self._all(peer) if any(len(found.records) >= FEW for found in few or ()) else None

    async def _all(self, peer: PeerID) -> list[Found] | None:
        told = await self._protocol.call_digests(peer, self._keys)
        if told is None:
            return None
        if self._lead is not None and peer != self._leader:
            await asyncio.wait({self._lead}, timeout=HEAD_START_S)
        wanted = [found.digests - self._held for found in told]
        given = [Found([], found.peers) for found in told]
        if any(wanted):
            new = await self._some(peer, wanted)
            given = [Found(record.records, found.peers) for record, found in zip(new or given, told, strict=True)]
        self._tell(given)
        return given

    async def _some(self, peer: PeerID, wanted: Sequence[frozenset[bytes]]) -> list[Found] | None:
        """The records with these digests, a set for each key: all by one call if they surely fit into one answer."""
        if max(map(len, wanted)) <= REPLY_BUDGET_BYTES // len(self._keys) // (MAX_RECORD_BYTES + LENGTH.size):
            return self._noted(await self._protocol.call_find(peer, self._keys, wanted))
        return [await self._under(peer, key, some) for key, some in zip(self._keys, wanted, strict=True)]

    async def _under(self, peer: PeerID, key: bytes, some: frozenset[bytes]) -> Found:
        found = self._noted(await self._protocol.call_find(peer, [key], [some])) if some else None
        return found[0] if found else Found([], [])

    def _tell(self, given: Sequence[Found]) -> None:
        if self._listener is not None:
            self._listener.answered({named for found in given for named in found.peers})

    def _noted(self, found: list[Found] | None) -> list[Found] | None:
        come = [raw for each in found or () for raw in each.records]
        self._held.update(map(digest_of, come))
        if come and self._listener is not None:
            self._listener.found(come)
        return found
