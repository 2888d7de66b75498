"""Byte streams between peers: the protocols the rest is written against, and what is behind them. No messages.

Every foreign error becomes `HopClosed` here and nowhere else. A stream is a TLS connection to the other program where
that can be called (`direct`), else a libp2p stream, which the daemon pipes through a unix socket.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from shoal.dht.allowance import Allowance
from shoal.dht.keys import network_of
from shoal.dht.knocking import hushed
from shoal.dht.maddr import direct_maddr, direct_place
from shoal.dht.named import is_far, resolved, target, ways
from shoal.peer.callers import Beginnings, Callers, Crowd
from shoal.peer.direct import DirectError, dial
from shoal.peer.errors import HopClosed
from shoal.peer.streams import take_over

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from shoal.dht.host import Host
    from shoal.peer.direct import DirectPort
    from shoal.peer.streams import SocketStream

logger = logging.getLogger(__name__)

LINK_PROTOCOL = "/shoal/1/link"
CONNECT_TIMEOUT_S = 10.0
MAX_ADDRESSES = 16
HEAD_START_S = 0.3  # of a direct stream before libp2p is asked as well
AVOIDED_S = 60.0  # where no direct stream was to be had, libp2p is asked at once for so long
VAIN, VAIN_S = 64, 1.0  # dials to one machine in the Internet in vain, at once and a second; then one for each peer
KNOWN = 1024  # peers of which is remembered where they were

Place = tuple[str, int]  # IP address and TCP port


class Stream(Protocol):
    """A reliable, ordered, two-way byte stream to one peer."""

    remote: str  # peer id, authenticated by the transport
    crowd: Crowd | None  # what its network's frames cost; None: it comes from no network that counts

    async def read(self) -> bytes:
        """At least one byte, or b"" when the other side has closed or died."""
        ...

    def write(self, *buffers: bytes | bytearray | memoryview) -> None:
        """Queue buffers; never blocks. The caller must not change them afterwards. Ignored on a closed stream."""
        ...

    async def drain(self) -> None:
        """Wait until little is queued. Raises HopClosed if the stream has closed."""
        ...

    def queued_bytes(self) -> int:
        """Bytes written that have not left yet."""
        ...

    def close(self) -> None:
        """Close, sending what is queued. Idempotent."""
        ...


class Transport(Protocol):
    """Opens streams to peers and takes theirs."""

    peer_id: str
    serving: asyncio.Event  # set once streams of others are taken

    async def connect(self, peer_id: str, addrs: Sequence[str]) -> Stream:
        """Open a stream. Raises HopClosed if the peer cannot be reached or does not serve."""
        ...

    async def serve(self, on_stream: Callable[[Stream], Awaitable[None]]) -> None:
        """Run `on_stream` for every stream that others open, until cancelled; a stream is closed when it returns."""
        ...

    def whence(self, peer_id: str) -> str | None:
        """The network from which somebody's newest stream came: None if that does not count, "" if it is not known."""
        ...


class P2PTransport:
    """`Transport` over direct streams and a host's libp2p daemon. serving: set once streams of others are taken.
    `direct`: where others' direct streams come in."""

    def __init__(self, host: Host, direct: DirectPort | None = None) -> None:
        self.peer_id = host.peer_id
        self.serving = asyncio.Event()
        self._host, self._direct = host, direct
        self._avoided: dict[tuple[str, Place], float] = {}  # where who did not answer, and until when that counts
        self._vain = Allowance(VAIN, VAIN_S)
        self._met: dict[str, Place] = {}  # where peers were last; whatever others say, they are asked there too
        self._known = False  # to the daemon, as one that takes streams
        self._accepted: asyncio.Queue[SocketStream] = asyncio.Queue()
        self._beginnings, self._callers = Beginnings(), Callers()

    async def connect(self, peer_id: str, addrs: Sequence[str]) -> SocketStream:
        """See `Transport`. At most 16 addresses are tried, such as strangers may name (`dht.named`); none are needed
        while a connection stands."""
        if peer_id == self.peer_id:
            raise HopClosed(peer_id, "a peer does not connect to itself")
        with _closed_if_fails(peer_id):
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                some = (await resolved(addrs))[:MAX_ADDRESSES]
                far, near = ways(some, self._host.maddrs, self._host.nodes)
                return await self._first(peer_id, self._worth_dialling(far), near)

    async def _first(self, peer_id: str, far: Sequence[str], near: Sequence[str]) -> SocketStream:
        """A direct stream, or one through libp2p if that is there first: it is asked for after a moment without one."""
        places, beside = self._worth_calling(peer_id, far), self._worth_calling(peer_id, near)
        met = [self._met[peer_id]] if peer_id in self._met else []
        others = [[addr for addr in some if direct_place(addr) is None] for some in (far, near)]
        calls = [self._call(peer_id, some) for some in (met, [place for place in places if place not in met]) if some]
        calls += [self._knock(peer_id, place) for place in self._host.knocks.take(beside)]
        called = [asyncio.create_task(call) for call in calls]
        waiting, chosen = set(called), None
        through: asyncio.Task[SocketStream] | None = None
        if not called:
            through = asyncio.create_task(self._open(peer_id, *others))
            waiting.add(through)
        try:
            while waiting and chosen is None:
                head_start_s = None if through else HEAD_START_S
                done, waiting = await asyncio.wait(waiting, timeout=head_start_s, return_when="FIRST_COMPLETED")
                chosen = next((task for task in done if not task.exception()), None)
                if chosen is None and through is None:
                    through = asyncio.create_task(self._open(peer_id, *others))
                    waiting.add(through)
            if chosen is not None and chosen is through:
                self._avoid(peer_id, [*met, *places, *beside])
            return (chosen or through or called[0]).result()
        finally:
            for task in (*called, through):
                if task is not None and task is not chosen:
                    task.cancel()
                    task.add_done_callback(_close_unused)

    async def _call(self, peer_id: str, places: Sequence[Place]) -> SocketStream:
        """A direct stream to the first of these places where the peer is."""
        for place in places:
            try:
                stream = await dial(self._host.identity, peer_id, *place)
            except OSError as error:
                logger.debug("no direct stream: %s", error)
                self._avoid(peer_id, [place])
                self._in_vain([direct_maddr(*place, peer_id)])
            else:
                self._met.pop(peer_id, None)
                self._met[peer_id] = place
                if len(self._met) > KNOWN:
                    del self._met[next(iter(self._met))]
                return stream
        raise DirectError(f"{peer_id} takes no direct streams")

    async def _knock(self, peer_id: str, place: Place) -> SocketStream:
        """A direct stream to a place in our own network, if the peer is there."""
        try:
            return await hushed(self._call(peer_id, [place]))
        except OSError:
            self._avoid(peer_id, [place])  # also if nothing answered
            raise

    def _worth_calling(self, peer_id: str, addrs: Iterable[str]) -> list[Place]:
        now = time.monotonic()
        places = filter(None, map(direct_place, addrs))
        return [place for place in dict.fromkeys(places) if self._avoided.get((peer_id, place), now) <= now]

    def _avoid(self, peer_id: str, places: Sequence[Place]) -> None:
        """Not for others: that this peer is not there says nothing of who is."""
        now = time.monotonic()
        self._avoided = {what: until for what, until in self._avoided.items() if until > now}
        self._avoided.update({(peer_id, place): now + AVOIDED_S for place in places})
        if self._met.get(peer_id) in places:
            del self._met[peer_id]

    def _in_vain(self, addrs: Iterable[str]) -> None:
        for addr in filter(is_far, addrs):
            self._vain.draw(str(target(addr)), 1, time.monotonic())

    def _worth_dialling(self, far: Iterable[str]) -> list[str]:
        """All but the first of each machine that was dialled in vain too often: whoever is there has other places, too,
        and anybody may have named those."""
        now, kept, seen = time.monotonic(), [], set()
        for addr in far:
            machine = str(target(addr))
            if machine not in seen or self._vain.left(machine, now) > 0:
                kept.append(addr)
            seen.add(machine)
        return kept

    async def serve(self, on_stream: Callable[[Stream], Awaitable[None]]) -> None:
        """See `Transport`. One at a time, but again after another has ended: the daemon is told once."""
        accepted = self._accepted
        if not self._known:
            with _closed_if_fails(self.peer_id):
                await self._host.p2p.add_binary_stream_handler(LINK_PROTOCOL, self._accept)
            self._known = True
        self.serving.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                if self._direct is not None:
                    tasks.create_task(self._direct.run(self._take))
                while True:
                    tasks.create_task(_run(on_stream, await accepted.get()))
        finally:
            self.serving.clear()
            while not accepted.empty():
                accepted.get_nowait().close()

    def whence(self, peer_id: str) -> str | None:
        """See `Transport`."""
        return self._callers.whence(peer_id)

    def _take(self, stream: SocketStream) -> None:
        self._callers.note(stream)
        self._accepted.put_nowait(stream)

    async def _accept(self, info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        maddr = str(info.addr)
        if self._beginnings.take(network_of(maddr)) and (self.serving.is_set() or not self._known):
            self._take(take_over(info.peer_id.to_base58(), reader, writer, maddr))
        else:
            writer.close()

    async def _open(self, peer_id: str, far: Sequence[str], near: Sequence[str]) -> SocketStream:
        """A libp2p stream."""
        from shoal.dht.foreign import P2PDaemonError, PeerID, p2pd_pb2, raise_if_failed, read_pbmsg_safe, write_pbmsg

        if far or near:
            try:
                await self._host.connect(peer_id, far, near)
            except (OSError, P2PDaemonError):
                self._in_vain(far)
                raise

        # hivemind's own stream_open leaves its socket open when the daemon says no.
        reader, writer = await self._host.p2p._client.control.daemon_connector.open_connection()
        try:
            wanted = p2pd_pb2.StreamOpenRequest(peer=PeerID.from_base58(peer_id).to_bytes(), proto=[LINK_PROTOCOL])
            await write_pbmsg(writer, p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=wanted))
            response = p2pd_pb2.Response()
            await read_pbmsg_safe(reader, response)
            raise_if_failed(response)
        except BaseException:
            writer.close()
            raise
        return take_over(peer_id, reader, writer)


def _close_unused(task: asyncio.Task[SocketStream]) -> None:
    if not task.cancelled() and not task.exception():
        task.result().close()


async def _run(on_stream: Callable[[Stream], Awaitable[None]], stream: SocketStream) -> None:
    try:
        await on_stream(stream)
    except Exception:  # the task's top: one stream's fault must not end the others
        logger.exception("a stream from %s ended in an error", stream.remote)
    finally:
        stream.close()


@contextmanager
def _closed_if_fails(peer_id: str) -> Iterator[None]:
    from shoal.dht.foreign import P2PDaemonError

    try:
        yield
    except TimeoutError as error:
        raise HopClosed(peer_id, "did not answer in time") from error
    except (P2PDaemonError, OSError, EOFError, ValueError) as error:
        words = f": {error}" if os.environ.get("SHOAL_DEBUG") else ""  # libp2p's, and many of them
        raise HopClosed(peer_id, f"cannot open a stream{words}") from error
