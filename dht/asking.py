"""One look-up's questions to nodes: no record is fetched twice. Knows the calls, not how to walk or what records mean.

The node that is asked first gives all its records. The others say by digests which they hold, and give those that
nobody gave before: in a large swarm the nodes hold much the same, and a client's line would be busy with copies. A node
that claims digests and gives nothing hides nothing: whatever is still missing is fetched from every other that has it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shoal.dht.protocol import Found
from shoal.dht.store import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from shoal.dht.foreign import PeerID
    from shoal.dht.protocol import ShoalDHT

    OnFound = Callable[[list[bytes]], None]

HEAD_START_S = 0.5  # the others wait at most so long for the first one's records


class Asking:
    """Asks each node for all keys in one call. `held`: sealed records that are not to be fetched again. `on_found` gets
    those that come, as they come."""

    def __init__(
        self, protocol: ShoalDHT, keys: Sequence[bytes], held: Iterable[bytes] = (), on_found: OnFound | None = None
    ) -> None:
        self._protocol, self._keys, self._on_found = protocol, keys, on_found
        self._held = set(map(digest_of, held))
        # Calls are no part of the searches' group: one that is being cancelled takes no more tasks, and a search that
        # asks at that moment would make an error of it.
        self._calls: dict[PeerID, asyncio.Task[list[Found] | None]] = {}
        self._leader: PeerID | None = None
        self._lead: dict[bytes, asyncio.Task[list[Found] | None]] = {}

    async def ask(self, peer: PeerID, key: bytes) -> Found | None:
        """What a node says about a key, less the records that are held; None if it does not answer."""
        if self._leader is None and not self._held:
            self._leader = peer
            # Key by key, so that the first records can be opened, and the next nodes asked, while the last still come.
            self._lead = {each: asyncio.create_task(self._all_under(peer, each)) for each in self._keys}
        if peer == self._leader:
            found = await self._lead[key]
            return found[0] if found is not None else None
        if peer not in self._calls:
            self._calls[peer] = asyncio.create_task(self._all(peer))
        found = await self._calls[peer]
        return found[self._keys.index(key)] if found is not None else None

    async def close(self) -> None:
        """End the calls that nobody waits for any more."""
        calls = [*self._calls.values(), *self._lead.values()]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def _all_under(self, peer: PeerID, key: bytes) -> list[Found] | None:
        return self._noted(await self._protocol.call_find(peer, [key]))

    async def _all(self, peer: PeerID) -> list[Found] | None:
        told = await self._protocol.call_digests(peer, self._keys)
        if told is None:
            return None
        if self._lead:
            await asyncio.wait(self._lead.values(), timeout=HEAD_START_S)
        wanted = [found.digests - self._held for found in told]
        given = [Found([], found.peers) for found in told]
        if any(wanted):
            new = self._noted(await self._protocol.call_find(peer, self._keys, wanted))
            given = [Found(record.records, found.peers) for record, found in zip(new or given, told, strict=True)]
        return given

    def _noted(self, found: list[Found] | None) -> list[Found] | None:
        come = [raw for each in found or () for raw in each.records]
        self._held.update(map(digest_of, come))
        if come and self._on_found is not None:
            self._on_found(come)
        return found
