"""A client's network that outlives its own libp2p daemon: transport and directory stay, what is under them is replaced.

When the daemon dies, it is started again under the same identity and the directory is joined anew, through nodes met
before if the bootstrap nodes are gone; whoever connects or looks up meanwhile waits.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from shoal.dht.background import background
from shoal.dht.directory import Nodes, open_directory
from shoal.dht.errors import HostError, JoinError
from shoal.dht.host import open_host
from shoal.dht.remembered import Remembered
from shoal.peer.errors import HopClosed
from shoal.peer.transport import P2PTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from shoal.dht.directory import Directory
    from shoal.dht.host import Host, HostConfig
    from shoal.dht.invite import Invite
    from shoal.dht.record import Record
    from shoal.peer.transport import Stream

logger = logging.getLogger(__name__)

RETRY_S = 1.0


class Network:
    """`Transport` and `Directory` of a client. `on_lost` is called when the daemon has died, and when
    another one is up: what failed meanwhile says nothing about others."""

    def __init__(self, config: HostConfig, invite: Invite, revision: str) -> None:
        self._fresh = config.identity is None and config.identity_path is None
        self._identity = config.resolve_identity()
        self.peer_id = self._identity.peer_id
        self.serving = asyncio.Event()  # never: a client takes no streams
        self.on_lost: Callable[[], None] = lambda: None
        self._config, self._invite, self._revision = replace(config, identity=self._identity), invite, revision
        self._remembered = Remembered()
        self._up = asyncio.Event()
        self._host: Host
        self._transport: P2PTransport
        self._directory: Directory

    async def connect(self, peer_id: str, addrs: Sequence[str]) -> Stream:
        """See `Transport`."""
        while True:
            await self._up.wait()
            host, transport = self._host, self._transport
            try:
                return await transport.connect(peer_id, addrs)
            except HopClosed:
                if not host.died.is_set():
                    raise
            self._gone(host)

    async def serve(self, on_stream: Callable[[Stream], Awaitable[None]]) -> None:
        """See `Transport`."""
        await self._up.wait()
        await self._transport.serve(on_stream)

    def whence(self, _peer_id: str) -> str | None:
        """See `Transport`: nobody's streams are taken."""
        return None

    async def announce(self, body: bytes, ttl_s: float) -> None:
        """See `Directory`."""
        await self._up.wait()
        await self._directory.announce(body, ttl_s)

    async def withdraw(self) -> None:
        """See `Directory`."""
        await self._up.wait()
        await self._directory.withdraw()

    async def lookup(self, within_s: float | None = None) -> list[Record]:
        """See `Directory`."""
        while True:
            await self._up.wait()
            host = self._host
            records = await self._directory.lookup(within_s)
            if not host.died.is_set():  # else nobody could be asked, and nothing found means nothing
                return records
            self._gone(host)

    async def rest(self) -> list[Record]:
        """See `Directory`."""
        await self._up.wait()
        host = self._host
        records = await self._directory.rest()
        return await self.lookup() if host.died.is_set() else records

    def nodes(self) -> Nodes:
        """See `Directory`."""
        return self._directory.nodes() if self._up.is_set() else Nodes()

    async def live(self, first: asyncio.Future[None]) -> None:
        """Keep a daemon and a place in the directory until cancelled; `first` tells how it went the first time."""
        while True:
            try:
                async with open_host(self._config) as host, self._joined(host) as directory:
                    self._host, self._transport, self._directory = host, P2PTransport(host), directory
                    if first.done():
                        self.on_lost()
                    else:
                        first.set_result(None)
                    self._up.set()
                    await host.died.wait()
                    self._up.clear()
                    self.on_lost()
            except (HostError, JoinError) as error:
                if not first.done():
                    first.set_exception(error)
                    return
                logger.warning("cannot join again yet: %s", error)
                await asyncio.sleep(RETRY_S)

    def _joined(self, host: Host) -> AbstractAsyncContextManager[Directory]:
        return open_directory(
            host, self._identity, self._invite, self._revision, self._remembered, guest=True, fresh=self._fresh
        )

    def _gone(self, host: Host) -> None:
        """A daemon has died; `live` may not have noticed yet."""
        if self._host is host:
            self._up.clear()


@asynccontextmanager
async def open_network(config: HostConfig, invite: Invite, revision: str) -> AsyncIterator[Network]:
    """Join. Errors: `HostError` (no daemon, port taken), `JoinError` (nobody of the invite answers)."""
    network = Network(config, invite, revision)
    first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with background(network.live(first)):
        await first
        yield network
