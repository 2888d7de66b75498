"""How a peer gets into a swarm's network: its daemon and its directory. Knows no span and no sessions."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shoal.dht.directory import Directory
    from shoal.dht.host import Host
    from shoal.dht.identity import Identity
    from shoal.dht.remembered import Remembered
    from shoal.peer.config import PeerConfig
    from shoal.peer.loading import Model


@asynccontextmanager
async def join(
    config: PeerConfig, identity: Identity, model: Model, remembered: Remembered
) -> AsyncIterator[tuple[Host, Directory]]:
    """The network as long as the peer is in it. Errors: `HostError`, `JoinError`."""
    from shoal.dht.directory import open_directory
    from shoal.dht.host import HostConfig, listen_for
    from shoal.dht.reach import open_reachable

    host_config = HostConfig(
        identity=identity, listen=config.listen or listen_for(config.invite.peers), port=config.port,
        bootstrap=config.invite.peers, announce=config.announce,
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(open_reachable(host_config))
        directory = await stack.enter_async_context(
            open_directory(host, identity, config.invite, model.checkpoint.revision, remembered)
        )
        yield host, directory
