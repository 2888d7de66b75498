"""Direct streams: TLS connections from one program to the other, without the two libp2p daemons between them.

The one who is called shows a certificate that proves its peer id (`certificate`). The caller signs, with its own peer's
key and as the first thing that it says, what only the two ends of this very connection know. Whoever cannot be called
has no port for them, and is reached through libp2p.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from shoal.dht.identity import PUBLIC_BYTES, SIGNATURE_BYTES, peer_id_of, verify
from shoal.dht.keys import network_of
from shoal.dht.maddr import direct_maddr, endpoint
from shoal.dht.proof import client_context, peer_id_in
from shoal.peer.callers import Beginnings
from shoal.peer.certificate import server_context
from shoal.peer.streams import take_over

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterable

    from shoal.dht.host import Host
    from shoal.dht.identity import Identity
    from shoal.peer.streams import SocketStream

logger = logging.getLogger(__name__)

GREETING: Final = b"shoal/1\n"
SIGNED_PREFIX: Final = b"shoal-direct:"
HANDSHAKE_S: Final = 5.0
MAX_GREETED, MAX_GREETED_EACH = 64, 16  # connections whose callers have not proved yet who they are, of one network
MAX_ADDRS: Final = 2  # that others are told
FULL_S: Final = 0.5  # the pause after the system had no more sockets


class DirectError(OSError):
    """Somebody is not who they should be."""


async def dial(identity: Identity, peer_id: str, address: str, port: int) -> SocketStream:
    """A stream to a peer. Errors: `OSError` if nobody answers there, or somebody else."""
    reader, writer = await asyncio.open_connection(
        address, port, ssl=client_context(), server_hostname="", ssl_handshake_timeout=HANDSHAKE_S
    )
    try:
        session: ssl.SSLObject = writer.get_extra_info("ssl_object")
        certificate = session.getpeercert(binary_form=True) or b""
        try:
            found = peer_id_in(certificate)
        except ValueError as error:
            raise DirectError(f"{address}:{port} shows {error}") from error
        if found != peer_id:
            raise DirectError(f"{address}:{port} is {found}, not {peer_id}")
        writer.write(GREETING + identity.public_bytes + identity.sign(_signed(session, certificate)))
    except BaseException:
        writer.transport.abort()
        raise
    return take_over(peer_id, reader, writer)


class DirectPort:
    """Takes others' direct streams on TCP `port`. `addrs`: where, to tell others; none if nobody gets there."""

    def __init__(self, identity: Identity, listening: socket.socket, addrs: tuple[str, ...]) -> None:
        self.port, self.addrs = listening.getsockname()[1], addrs
        self._listening = listening
        self._context, self._certificate = server_context(identity)
        self._greeted: Counter[str | None] = Counter()  # by network; None: our own
        self._beginnings = Beginnings()

    async def run(self, on_stream: Callable[[SocketStream], None]) -> None:
        """Hand over every stream whose caller has proved who it is, until cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    caller, where = await loop.sock_accept(self._listening)
                except OSError as error:
                    logger.warning("cannot take another connection: %s", error)
                    await asyncio.sleep(FULL_S)
                    continue
                maddr = direct_maddr(where[0], where[1], "")
                network = network_of(maddr)
                crowd = network is not None and self._greeted[network] >= MAX_GREETED_EACH
                if crowd or self._greeted.total() >= MAX_GREETED or not self._beginnings.take(network):
                    caller.close()
                    continue
                self._greeted[network] += 1
                tasks.create_task(self._greet(caller, maddr, on_stream))

    async def _greet(self, caller: socket.socket, maddr: str, on_stream: Callable[[SocketStream], None]) -> None:
        network = network_of(maddr)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                on_stream(await self._take(caller, maddr))
        except (OSError, EOFError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
            logger.debug("no direct stream: %s", error)
        finally:
            self._greeted[network] -= 1
            self._greeted += Counter()  # forgets those that have none

    async def _take(self, caller: socket.socket, maddr: str) -> SocketStream:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, caller, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_S
        )
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            said = await reader.readexactly(len(GREETING) + PUBLIC_BYTES + SIGNATURE_BYTES)
            public, signature = said[len(GREETING) : -SIGNATURE_BYTES], said[-SIGNATURE_BYTES:]
            peer_id = peer_id_of(public)
            signed = _signed(transport.get_extra_info("ssl_object"), self._certificate)
            if not said.startswith(GREETING) or not verify(peer_id, signature, signed):
                raise DirectError(f"a caller did not prove to be {peer_id}")
        except BaseException:
            transport.abort()
            raise
        return take_over(peer_id, reader, writer, maddr)


@asynccontextmanager
async def open_direct_port(
    host: Host, listen: str, port: int | None, nodes: Iterable[str]
) -> AsyncIterator[DirectPort | None]:
    """Listen for direct streams beside a host, on `port` if that is free, else on any. `nodes` are asked whether they
    get there. None if `port` is, and where the host itself is reached through relays alone."""
    if host.relayed or port is None:
        yield None
        return
    with _listening(listen, port) as listening:
        bound = listening.getsockname()[1]
        found = dict.fromkeys(found[0] for found in map(endpoint, host.maddrs) if found)
        addrs = tuple(direct_maddr(address, bound, host.peer_id) for address in found)[:MAX_ADDRS]
        from shoal.dht.reach import ask_reach, reach_of

        if reach_of(await ask_reach(host, nodes, bound)) == "closed":
            logger.info("nothing from outside gets through to port %d: others reach this peer through libp2p", bound)
            addrs = ()
        yield DirectPort(host.identity, listening, addrs)


def _listening(address: str, port: int) -> socket.socket:
    """A socket that listens. Errors: `OSError`."""
    listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((address, port if port < 1 << 16 else 0))
        except OSError:
            listening.bind((address, 0))
        listening.listen(MAX_GREETED)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _signed(session: ssl.SSLObject, certificate: bytes) -> bytes:
    """What a caller signs: a digest of all that the handshake said (its client's Finished message, RFC 8446 4.4.4),
    and whom it has called."""
    binding = session.get_channel_binding("tls-unique")
    if not binding:
        raise DirectError("this connection has no binding")
    return SIGNED_PREFIX + binding + certificate
