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
    from collections.abc import Iterable, Sequence

    from shoal.dht.foreign import PeerID
    from shoal.dht.protocol import ShoalDHT

HEAD_START_S = 0.5  # the others wait at most so long for the first one's records


class Asking:
    """Asks each node for all keys in one call. `held`: sealed records that are not to be fetched again."""

    def __init__(self, protocol: ShoalDHT, keys: Sequence[bytes], held: Iterable[bytes] = ()) -> None:
        self._protocol, self._keys = protocol, keys
        self._held = set(map(digest_of, held))
        # Calls are no part of the searches' group: one that is being cancelled takes no more tasks, and a search that
        # asks at that moment would make an error of it.
        self._calls: dict[PeerID, asyncio.Task[list[Found] | None]] = {}
        self._first: asyncio.Task[list[Found] | None] | None = None

    async def ask(self, peer: PeerID, key: bytes) -> Found | None:
        """What a node says about a key, less the records that are held; None if it does not answer."""
        if peer not in self._calls:
            self._calls[peer] = asyncio.create_task(self._all(peer) if self._first or self._held else self._lead(peer))
            self._first = self._first or self._calls[peer]
        found = await self._calls[peer]
        return found[self._keys.index(key)] if found is not None else None

    async def close(self) -> None:
        """End the calls that nobody waits for any more."""
        for call in self._calls.values():
            call.cancel()
        await asyncio.gather(*self._calls.values(), return_exceptions=True)

    async def _lead(self, peer: PeerID) -> list[Found] | None:
        return self._noted(await self._protocol.call_find(peer, self._keys))

    async def _all(self, peer: PeerID) -> list[Found] | None:
        told = await self._protocol.call_digests(peer, self._keys)
        if told is None:
            return None
        if self._first is not None and self._first is not asyncio.current_task():
            await asyncio.wait({self._first}, timeout=HEAD_START_S)
        wanted = [found.digests - self._held for found in told]
        given = [Found([], found.peers) for found in told]
        if any(wanted):
            new = self._noted(await self._protocol.call_find(peer, self._keys, wanted))
            given = [Found(record.records, found.peers) for record, found in zip(new or given, told, strict=True)]
        return given

    def _noted(self, found: list[Found] | None) -> list[Found] | None:
        for each in found or ():
            self._held.update(map(digest_of, each.records))
        return found
