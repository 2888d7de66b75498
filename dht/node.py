"""One node of the directory: joins, stays joined, finds and stores sealed records. Knows no swarm and no secret.

A bootstrap node is this and nothing more: it checks every record by itself, because a record says all that is needed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from shoal.dht.asking import Asking
from shoal.dht.background import background
from shoal.dht.clock import SwarmClock
from shoal.dht.errors import HostError, JoinError, RecordError
from shoal.dht.foreign import DHTID, P2PDaemonError, PeerID
from shoal.dht.host import dial_all
from shoal.dht.keys import KEY_BYTES
from shoal.dht.protocol import BUCKET_SIZE, REPLICAS, ShoalDHT
from shoal.dht.reach import ids_of, serve_reach
from shoal.dht.record import parse
from shoal.dht.remembered import Remembered
from shoal.dht.search import Search
from shoal.dht.steady import steady

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from shoal.dht.asking import Listener
    from shoal.dht.host import Host

logger = logging.getLogger(__name__)

UPKEEP_PERIOD_S = 5.0
REFRESH_EVERY = 12  # periods: once a minute
STOP_TIMEOUT_S = 2.0


class Sighting(NamedTuple):
    """What a search for one key gave: sealed records, not verified, and the nodes that should hold more."""

    records: set[bytes]
    nearest: list[PeerID]


class Node:
    """A member of the directory. Made by `open_node`."""

    def __init__(self, host: Host, protocol: ShoalDHT, bootstrap: Sequence[str], remembered: Remembered) -> None:
        self.host = host
        self.protocol = protocol
        self._bootstrap = tuple(bootstrap)
        self._remembered = remembered

    def now(self) -> float:
        """Swarm time, unix seconds."""
        return self.protocol.now()

    @property
    def clock_offset_s(self) -> float:
        """Swarm time less this machine's wall clock as it stands now."""
        offset = self.now() - time.time()
        return offset if abs(offset) > 1.0 else 0.0

    async def join(self) -> None:
        """Meet the bootstrap nodes and our own neighbours. JoinError if there are bootstrap nodes, and neither one of
        them answers nor anybody met before."""
        others = [maddr for maddr in self._bootstrap if not maddr.endswith(f"/p2p/{self.host.peer_id}")]
        if others and not await self._meet(others) and not await self._meet(self._remembered.maddrs()):
            where = ", ".join(others[:3])
            raise JoinError(f"No bootstrap node answers at {where}; check that one runs and can be reached.")
        if not self.protocol.client_mode:  # nobody is to find a guest, and its first look-up finds others for it
            await self.look(self.protocol.node_id.to_bytes())

    async def look(self, *keys: bytes, held: Iterable[bytes] = (), listener: Listener | None = None) -> list[Sighting]:
        """Search for keys, all at once, asking each node met for all of them; records that are `held` are not fetched
        again, and may be missing in what is found. `listener` hears of it while the search goes on."""
        asking = Asking(self.protocol, keys, held, listener)
        searches = [Search(key, asking.ask) for key in keys]
        try:
            async with asyncio.TaskGroup() as tasks:
                for search in searches:
                    tasks.create_task(search.run(self._seeds(search.key), self.host.p2p.peer_id))
            for search, found in zip(searches, await asking.rest(), strict=True):
                search.records.update(found.records)
        finally:
            await asking.close()
        for search in searches:
            here = self.protocol.store.get(search.key, self.now())
            search.records.update(here)
            if listener is not None:
                listener.found(here)
        return [Sighting(search.records, search.nearest(REPLICAS)) for search in searches]

    async def store(self, key: bytes, raw: bytes, nearest: Sequence[PeerID]) -> int:
        """Offer a sealed record to nodes, and keep it here too; how many others took it. RecordError if it is refused
        here and nobody else took it: then it is nowhere."""
        peer_id, refusal = parse(raw).peer_id, None
        if not self.protocol.client_mode:
            try:
                self.protocol.store.put(key, peer_id, raw, self.now(), by_owner=peer_id == self.host.peer_id)
            except RecordError as error:
                logger.debug("our own node does not keep the record: %s", error)
                refusal = error
        answers = await asyncio.gather(*(self.protocol.call_store(peer, key, peer_id, raw) for peer in nearest))
        taken = sum(bool(answer) for answer in answers)
        if refusal is not None and not taken:
            raise refusal
        return taken

    async def upkeep(self) -> None:
        """Rejoin when all are gone; once a minute meet the bootstrap nodes again, which may have been away, look for
        new neighbours, drop dead ones and read others' clocks."""
        for turn in itertools.count(1):
            await asyncio.sleep(UPKEEP_PERIOD_S)
            if self.host.died.is_set():
                return
            if not self.protocol.routing_table.peers():
                await self._meet([*self._bootstrap, *self._remembered.maddrs()])
            await self._remember()
            if turn % REFRESH_EVERY == 1:
                await self._meet(self._bootstrap)  # dials those alone to which no connection stands
                await self._ping(self.protocol.routing_table.least_recent())
                await self.look(self.protocol.node_id.to_bytes(), os.urandom(KEY_BYTES))

    async def _meet(self, maddrs: Sequence[str]) -> int:
        return await self._ping([PeerID.from_base58(peer_id) for peer_id in await dial_all(self.host, maddrs)])

    async def _ping(self, peers: Sequence[PeerID]) -> int:
        answers = await asyncio.gather(*(self.protocol.call_ping(peer) for peer in peers))
        return sum(answers)

    async def _remember(self) -> None:
        """Keep addresses of living nodes, to rejoin through them when the bootstrap nodes are gone."""
        nodes = {str(peer) for peer in self.protocol.routing_table.peers()}
        connected = await self.protocol.addresses()
        self._remembered.add(
            {peer_id: f"{maddr}/p2p/{peer_id}" for peer_id, maddr in connected.items() if peer_id in nodes}
        )

    def _seeds(self, key: bytes) -> list[PeerID]:
        near = self.protocol.routing_table.get_nearest_neighbors(DHTID.from_bytes(key), BUCKET_SIZE)
        return random.sample([peer for _, peer in near], len(near))


@asynccontextmanager
async def open_node(
    host: Host, bootstrap: Sequence[str] = (), remembered: Remembered | None = None, *, guest: bool = False
) -> AsyncIterator[Node]:
    """Join the directory through the bootstrap multiaddrs or, where they are silent, nodes that were `remembered`;
    start one if there are no bootstrap nodes. A guest will be gone soon: others are not to look for records at it.
    JoinError, HostError."""
    clock = SwarmClock(time.time(), steady(), ids_of(bootstrap))
    try:
        protocol = await ShoalDHT.open(host, clock, guest=guest)
    except (P2PDaemonError, OSError) as error:
        raise HostError("The libp2p daemon takes no directory: it has died, or already serves one.") from error
    node = Node(host, protocol, bootstrap, remembered or Remembered())
    try:
        if not protocol.client_mode:
            await serve_reach(host)
        await node.join()
        async with background(node.upkeep()):
            yield node
    finally:
        if not host.died.is_set():
            with suppress(TimeoutError, P2PDaemonError, OSError):  # it may die while we leave
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await protocol.shutdown()
