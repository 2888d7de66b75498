"""How a peer gets into a swarm's network: its daemon, its port for direct streams, its directory. Knows no span."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from shoal.dht.directory import Directory
    from shoal.dht.host import Host, Reach
    from shoal.dht.identity import Identity
    from shoal.dht.remembered import Remembered
    from shoal.peer.config import PeerConfig
    from shoal.peer.loading import Model
    from shoal.peer.transport import P2PTransport
    from shoal.routing.view import View


@dataclass(frozen=True, slots=True)
class Net:
    """A peer's place in the network. `nodes`: peer ids of those that say whether others get here; `direct_addrs`:
    where direct streams were taken at the start; `ports`: the TCP ports for libp2p and for them, 0 for none."""

    host: Host
    directory: Directory
    transport: P2PTransport
    nodes: tuple[str, ...]
    direct_addrs: tuple[str, ...]
    ports: tuple[int, int]

    @property
    def addrs(self) -> tuple[str, ...]:
        """What others are told, by what the host knows now: as much as there is room for."""
        from shoal.dht.maddr import direct_maddr, endpoint
        from shoal.dht.reach import shareable
        from shoal.peer.direct import MAX_ADDRS

        addrs = shareable(self.host.maddrs)
        # Where nobody got to the port for direct streams at the start, it is not announced later either.
        here = dict.fromkeys(found[0] for found in map(endpoint, addrs) if found) if self.direct_addrs else ()
        direct = [direct_maddr(address, self.ports[1], self.host.peer_id) for address in here][:MAX_ADDRS]
        return shareable((*direct, *addrs))

    async def look(self) -> tuple[Reach, tuple[str, ...]]:
        """How others get here now, and the addresses to tell them. Errors: `OSError`, `EOFError` if the daemon dies."""
        from shoal.dht.reach import find_reach

        reach, _ = await find_reach(self.host, self.nodes)
        return reach, self.addrs

    async def survey(self, view: View, known: Mapping[str, float]) -> dict[str, float]:
        """See `Surveyor`."""
        from shoal.peer.greet import Surveyor

        return await Surveyor(self.transport).survey(view, known)


@asynccontextmanager
async def join(
    config: PeerConfig, identity: Identity, model: Model, remembered: Remembered, ports: tuple[int, int] = (0, 0)
) -> AsyncIterator[Net]:
    """The network as long as the peer is in it. `ports`: where it was before, as in `Net`; it is there again if it was
    not told where and they are free, since others may know no other way to it. Errors: `HostError`, `JoinError`."""
    from shoal.dht.directory import open_directory
    from shoal.dht.host import HostConfig, check_port, free_or_any, listen_for
    from shoal.dht.reach import ids_of, open_reachable, port_of
    from shoal.peer.direct import open_direct_port
    from shoal.peer.transport import P2PTransport

    listen = config.listen or listen_for(config.invite.peers)
    host_config = HostConfig(
        identity=identity, listen=listen, port=config.port or free_or_any(listen, ports[0]),
        bootstrap=config.invite.peers, announce=config.announce,
    )  # fmt: skip
    if config.direct_port:
        check_port(listen, config.direct_port)
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(open_reachable(host_config))
        wanted = config.direct_port
        if wanted == 0:
            wanted = config.port + 1 if config.port else ports[1]
        nodes = tuple(ids_of(config.invite.peers))
        direct = await stack.enter_async_context(open_direct_port(host, listen, wanted, nodes))
        directory = await stack.enter_async_context(
            open_directory(host, identity, config.invite, model.checkpoint.revision, remembered)
        )
        ports = 0 if host.relayed else port_of(host), direct.port if direct else 0
        yield Net(host, directory, P2PTransport(host, direct), nodes, direct.addrs if direct else (), ports)
