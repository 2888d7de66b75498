"""One libp2p daemon per peer: started, watched, stopped. Knows processes and addresses, nothing of records or swarms.

The daemon's control sockets and a copy of its key live in a folder of its own that only this user can enter, and vanish
with it. The daemon ends by itself when this process dies: it exits once its control connection is gone.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from shoal.dht.allowance import Listing
from shoal.dht.errors import HostError
from shoal.dht.folder import private_folder
from shoal.dht.identity import Identity
from shoal.dht.knocking import Knocks, hushed
from shoal.dht.maddr import endpoint, is_loopback, is_relayed, pack
from shoal.dht.named import resolved

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from shoal.dht.foreign import P2P

logger = logging.getLogger(__name__)

DAEMON_IDLE_S = 10.0  # the daemon ends if nobody has opened its control connection by then
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 2.0
DIAL_TIMEOUT_S = 5.0
PUNCH_TIMEOUT_S = 1.0
PUNCH_POLL_S = 0.05
RELAY_TIMEOUT_S = 8.0
RELAY_POLL_S = 0.1

Reach = Literal["direct", "relayed", "unknown"]


@dataclass(frozen=True)
class HostConfig:
    """How a peer stands on the network.

    identity, or the file that it is kept in (made if absent); neither: a fresh one. listen: an IP address to bind.
    port: TCP, 0 for any free one. bootstrap: multiaddrs to connect to, which also serve as relays. announce: multiaddrs
    to tell others instead of those bound. reachability: what to believe without asking others. relayed: nobody can dial
    us, so be reached through the bootstrap nodes' relays; libp2p punches a hole for a direct connection where it can.
    """

    identity: Identity | None = None
    identity_path: Path | None = None
    listen: str = "127.0.0.1"
    port: int = 0
    bootstrap: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    reachability: Literal["auto", "public", "private"] = "auto"
    relayed: bool = False

    def resolve_identity(self) -> Identity:
        """The identity to run under; IdentityError if its file is unusable."""
        if self.identity is not None:
            return self.identity
        return Identity.load_or_create(self.identity_path) if self.identity_path else Identity.generate()


@dataclass(eq=False)
class Host:
    """A running daemon. maddrs: full addresses, each ending in `/p2p/ID`, as they were when somebody last looked. died:
    set soon after the daemon's death. reach: how others get here, as far as it was found out (`dht.reach`). told: its
    addresses are those that its owner named. outside: where others got here though the daemon knew no such address, ""
    if nowhere; it comes first among the addresses. nodes: addresses of the bootstrap nodes."""

    p2p: P2P
    identity: Identity
    maddrs: tuple[str, ...]
    died: asyncio.Event
    relayed: bool = False
    reach: Reach = "unknown"
    told: bool = False
    outside: str = ""
    nodes: tuple[str, ...] = ()
    knocks: Knocks = field(default_factory=Knocks)

    @property
    def peer_id(self) -> str:
        """Our own peer id."""
        return self.identity.peer_id

    async def connect(self, peer_id: str, maddrs: Iterable[str], near: Iterable[str] = ()) -> None:
        """Dial a peer unless a connection stands; OSError, ValueError or the daemon's P2PDaemonError if that fails.
        `near`: see `Ways`; where the others lead nowhere."""
        from shoal.dht.foreign import P2PDaemonError
        from shoal.dht.nearby import meet_nearby

        maddrs, near = tuple(maddrs), tuple(near)
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            try:
                async with asyncio.timeout(DIAL_TIMEOUT_S / 2 if near else None):  # some routers let nobody back in
                    await self._dial(peer_id, maddrs)
            except (P2PDaemonError, TimeoutError):
                if not (beside := self.knocks.take(near)):
                    raise
                await hushed(self._dial(peer_id, beside))
            if any(map(is_relayed, maddrs)):
                await meet_nearby(self, peer_id, (*maddrs, *near))
        if any(map(is_relayed, maddrs)):
            await self._punched(peer_id)

    async def _dial(self, peer_id: str, maddrs: Iterable[str]) -> None:
        from shoal.dht.foreign import PeerID

        # The daemon wants addresses without the trailing /p2p/ID.
        bare = [pack(maddr.removesuffix(f"/p2p/{peer_id}")) for maddr in maddrs]
        await self.p2p.dial(PeerID.from_base58(peer_id), bare)

    async def direct_to(self, peer_id: str) -> bool:
        """Whether a connection to a peer stands that no relay carries."""
        peers = await self.p2p.list_peers()
        return any(endpoint(str(maddr)) for peer in peers if str(peer.peer_id) == peer_id for maddr in peer.addrs)

    async def _punched(self, peer_id: str) -> None:
        """Wait a moment for a direct connection beside a relayed one: a stream stays on that which it was opened on."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PUNCH_TIMEOUT_S):
                while True:
                    if await self.direct_to(peer_id):
                        return
                    await asyncio.sleep(PUNCH_POLL_S)

    async def current_maddrs(self) -> tuple[str, ...]:
        """The addresses as the daemon knows them now: a relayed host learns its own only after a while, and a machine
        may be given another."""
        _, maddrs = await self.p2p._client.identify()
        return _full(maddrs, self.peer_id)

    async def look(self) -> tuple[str, ...]:
        """`maddrs`, after asking the daemon for them. Errors: `OSError` and `EOFError` if it dies."""
        maddrs = await self.current_maddrs()
        if self.relayed or not all(map(is_loopback, maddrs)):  # else we are in no network just now, and may come back
            self.maddrs = tuple(dict.fromkeys((self.outside, *maddrs) if self.outside else maddrs))
        return self.maddrs


@asynccontextmanager
async def open_host(config: HostConfig) -> AsyncIterator[Host]:
    """Start a daemon and stop it at the end. HostError, with a sentence, if it does not start or its port is taken."""
    identity = config.resolve_identity()
    check_port(config.listen, config.port)
    with private_folder() as folder:
        key_file = folder / "identity"
        key_file.touch(mode=0o600)
        key_file.write_bytes(identity.to_bytes())
        p2p = await _start_daemon(config, folder, key_file)
        p2p.list_peers = listing = Listing(p2p.list_peers)  # a stranger's request to our directory needs one
        key_file.unlink()  # the daemon has read it; nothing secret stays behind if this process is killed
        try:
            maddrs = _full(p2p._visible_maddrs, identity.peer_id)
            host = Host(p2p, identity, maddrs, p2p.died, config.relayed, told=bool(config.announce))
            host.nodes = await resolved(config.bootstrap)
            await dial_all(host, config.bootstrap)
            yield await _with_relays(host) if config.relayed else host
        finally:
            listing.close()
            await _stop_daemon(p2p)


async def dial_all(host: Host, maddrs: Iterable[str]) -> list[str]:
    """Dial peers, all at once, and return the ids of those that answered; the others are logged."""
    by_peer: dict[str, list[str]] = {}
    for maddr in maddrs:
        by_peer.setdefault(maddr.rpartition("/p2p/")[2], []).append(maddr)
    by_peer.pop(host.peer_id, None)
    answered = await asyncio.gather(*(_dial(host, peer_id, addresses) for peer_id, addresses in by_peer.items()))
    return [peer_id for peer_id, yes in zip(by_peer, answered, strict=True) if yes]


async def _dial(host: Host, peer_id: str, maddrs: list[str]) -> bool:
    from shoal.dht.foreign import P2PDaemonError

    try:
        await host.connect(peer_id, maddrs)
    except (OSError, EOFError, ValueError, TimeoutError, P2PDaemonError) as error:
        logger.info("cannot reach %s: %s", maddrs[0], error)
        return False
    return True


async def _with_relays(host: Host) -> Host:
    """The host with its addresses through relays, once one has taken it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(RELAY_TIMEOUT_S):
            while True:
                if any(map(is_relayed, maddrs := await host.current_maddrs())):
                    return replace(host, maddrs=maddrs, reach="relayed")
                await asyncio.sleep(RELAY_POLL_S)
    logger.warning("no bootstrap node relays for us: those outside of our network cannot reach this peer")
    return host


def listen_for(bootstrap: Iterable[str]) -> str:
    """Where to listen by default: on this machine alone if the swarm's nodes are on it, else on all addresses; by IPv6
    if that is how all of the nodes are reached."""
    maddrs = tuple(bootstrap)
    ipv6 = bool(maddrs) and all(maddr.startswith(("/ip6/", "/dns6/")) for maddr in maddrs)
    if all(map(is_loopback, maddrs)):
        return "::1" if ipv6 else "127.0.0.1"
    return "::" if ipv6 else "0.0.0.0"  # noqa: S104


def check_port(listen: str, port: int) -> None:
    """HostError if nobody can listen there. libp2p itself would share a taken port and lose half its connections."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(listen).version == 6 else socket.AF_INET
    except ValueError as error:
        raise HostError(f"{listen!r} is not an IP address; listen on one of this machine's, or on 0.0.0.0.") from error
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen, port))
            probe.listen(1)
        except PermissionError as error:
            raise HostError(f"Port {port} needs rights that this user has not; choose one above 1023.") from error
        except OverflowError as error:
            raise HostError(f"Port {port} does not exist; choose one from 1 to 65535, or 0 for any.") from error
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL or not port:
                raise HostError(f"{listen} is not an address of this machine; listen on one that is.") from error
            message = f"Port {port} on {listen} is taken; stop the program that uses it or choose another port."
            raise HostError(message) from error


def free_or_any(listen: str, port: int) -> int:
    """`port` if one can listen there now, else 0 for any."""
    try:
        check_port(listen, port)
    except HostError:
        return 0
    return port


def _full(maddrs: Iterable[Any], peer_id: str) -> tuple[str, ...]:
    tail = f"/p2p/{peer_id}"
    return tuple(dict.fromkeys(text if text.endswith(tail) else text + tail for text in map(str, maddrs)))


async def _start_daemon(config: HostConfig, folder: Path, key_file: Path) -> Any:
    from shoal.dht.daemon import daemon_in
    from shoal.dht.foreign import P2PDaemonError

    version = 6 if ":" in config.listen else 4
    local = ipaddress.ip_address(config.listen).is_loopback
    # A relay's table of the Internet's networks is a third of a second's work at each start.
    alone = local and not config.announce and all(map(is_loopback, config.bootstrap))
    relayed = {"use_auto_relay": True, "trusted_relays": config.bootstrap}
    believed = "private" if config.relayed else config.reachability
    try:
        return await daemon_in(folder).create(
            identity_path=str(key_file),
            check_if_identity_free=False,  # hivemind's check understands RSA keys only; the directory has its own
            announce_maddrs=config.announce or None,
            host_maddrs=[f"/ip{version}/{config.listen}/tcp/{config.port}"],
            force_reachability=None if believed == "auto" else believed,
            nat_port_map=not local,
            auto_nat=not local,
            use_relay=config.relayed or not alone,
            idle_timeout=DAEMON_IDLE_S,
            startup_timeout=START_TIMEOUT_S,
            **(relayed if config.relayed else {}),
        )
    except (P2PDaemonError, OSError, EOFError, ValueError) as error:
        raise HostError(f"The libp2p daemon does not start: {error}") from error


async def _stop_daemon(p2p: Any) -> None:
    """End the daemon gently, and by force if it has not gone after 2 s."""
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await p2p.shutdown()
    except TimeoutError:
        with suppress(ProcessLookupError):
            p2p._child.kill()
        await p2p._child.wait()
