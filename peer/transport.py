"""Byte streams between peers: the protocols the rest is written against, and libp2p behind them. No messages, no state.

The only file of this package with sockets. Every foreign error becomes `HopClosed` here and nowhere else. A stream is
one libp2p stream, which the daemon pipes through a unix socket; bytes are read straight from that socket's transport,
since asyncio's StreamReader copies each of them twice more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast

from shoal.peer.errors import HopClosed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from shoal.dht.host import Host

logger = logging.getLogger(__name__)

LINK_PROTOCOL = "/shoal/1/link"
CONNECT_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0  # what is queued when a stream is closed may take this long to leave
READ_CHUNK_BYTES = 256 * 1024  # at most so much in one read()
PAUSE_READING_BYTES = 1024 * 1024  # the other side is held back while so much lies unread
QUEUE_HIGH_BYTES = 1024 * 1024  # drain() waits while more than this is queued
JOIN_BYTES = 64 * 1024  # buffers smaller than this in all leave in one write, and so in one packet
MAX_ADDRESSES = 16


class Stream(Protocol):
    """A reliable, ordered, two-way byte stream to one peer."""

    remote: str  # peer id, authenticated by the transport

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


class SocketStream(asyncio.Protocol):
    """A `Stream` that takes over an asyncio writer's transport. received: bytes read already; paused: reading is."""

    def __init__(self, remote: str, writer: asyncio.StreamWriter, received: bytes, paused: bool) -> None:
        self.remote = remote
        self._writer = writer  # kept, because a writer that is collected closes its transport
        self._transport = transport = cast("asyncio.Transport", writer.transport)
        self._chunks: deque[bytes] = deque([received] if received else [])
        self._unread_bytes = len(received)
        self._reading_paused = paused
        self._ended = transport.is_closing()
        self._reader: asyncio.Future[None] | None = None
        self._drainers: deque[asyncio.Future[None]] = deque()
        self._writing_paused = False
        self._abort: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        transport.set_write_buffer_limits(high=QUEUE_HIGH_BYTES)
        transport.set_protocol(self)

    async def read(self) -> bytes:
        """See `Stream`. One reader at a time."""
        while not self._chunks:
            if self._ended:
                return b""
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self._take()

    def write(self, *buffers: bytes | bytearray | memoryview) -> None:
        """See `Stream`."""
        if self._ended or self._transport.is_closing():
            return
        if len(buffers) > 1 and sum(map(_size, buffers)) <= JOIN_BYTES:
            self._transport.write(b"".join(buffers))
            return
        for buffer in buffers:
            self._transport.write(buffer)

    async def drain(self) -> None:
        """See `Stream`."""
        while self._writing_paused and not self._ended:
            drained: asyncio.Future[None] = self._loop.create_future()
            self._drainers.append(drained)
            try:
                await drained
            finally:
                self._drainers.remove(drained)
        if self._ended or self._transport.is_closing():
            raise HopClosed(self.remote, f"the stream to {self.remote} has closed")

    def queued_bytes(self) -> int:
        """See `Stream`."""
        return self._transport.get_write_buffer_size()

    def close(self) -> None:
        """See `Stream`. What a stalled peer does not take within 5 s is thrown away."""
        if self._transport.is_closing():
            return
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._abort = self._loop.call_later(CLOSE_TIMEOUT_S, self._transport.abort)
        self._end()

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes have come."""
        self._chunks.append(data)
        self._unread_bytes += len(data)
        if self._unread_bytes > PAUSE_READING_BYTES and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
        _wake(self._reader)

    def eof_received(self) -> bool:
        """asyncio: the other side has closed; let the transport close too."""
        self._end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        """asyncio: the socket is gone."""
        if self._abort is not None:
            self._abort.cancel()
        self._end()

    def pause_writing(self) -> None:
        """asyncio: more than the high-water mark is queued."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """asyncio: the queue has shrunk."""
        self._writing_paused = False
        self._wake_drainers()

    def _take(self) -> bytes:
        chunk = self._chunks.popleft()
        if len(chunk) > READ_CHUNK_BYTES:
            self._chunks.appendleft(chunk[READ_CHUNK_BYTES:])
            chunk = chunk[:READ_CHUNK_BYTES]
        self._unread_bytes -= len(chunk)
        if self._reading_paused and self._unread_bytes <= PAUSE_READING_BYTES // 2:
            self._reading_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()
        return chunk

    def _end(self) -> None:
        self._ended = True
        _wake(self._reader)
        self._wake_drainers()

    def _wake_drainers(self) -> None:
        for drained in self._drainers:
            _wake(drained)


def _size(buffer: bytes | bytearray | memoryview) -> int:
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class P2PTransport:
    """`Transport` over a host's libp2p daemon. serving: set once streams of others are taken."""

    def __init__(self, host: Host) -> None:
        self.peer_id = host.peer_id
        self.serving = asyncio.Event()
        self._host = host
        self._known = False  # to the daemon, as one that takes streams
        self._accepted: asyncio.Queue[SocketStream] = asyncio.Queue()

    async def connect(self, peer_id: str, addrs: Sequence[str]) -> SocketStream:
        """See `Transport`. At most 16 addresses are tried; none are needed while a connection stands."""
        if peer_id == self.peer_id:
            raise HopClosed(peer_id, "a peer does not connect to itself")
        with _closed_if_fails(peer_id):
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                if addrs:
                    await self._host.connect(peer_id, addrs[:MAX_ADDRESSES])
                return await self._open(peer_id)

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
                while True:
                    tasks.create_task(_run(on_stream, await accepted.get()))
        finally:
            self.serving.clear()
            while not accepted.empty():
                accepted.get_nowait().close()

    async def _accept(self, info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = _take_over(info.peer_id.to_base58(), reader, writer)
        if self.serving.is_set() or not self._known:
            self._accepted.put_nowait(stream)
        else:
            stream.close()

    async def _open(self, peer_id: str) -> SocketStream:
        from shoal.dht.foreign import PeerID, p2pd_pb2, raise_if_failed, read_pbmsg_safe, write_pbmsg

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
        return _take_over(peer_id, reader, writer)


def _take_over(peer_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> SocketStream:
    """Our stream in place of asyncio's pair, with whatever the reader holds already."""
    # There is no public way to ask for these three.
    received, paused = bytes(reader._buffer), reader._paused  # type: ignore[attr-defined]
    stream = SocketStream(peer_id, writer, received, paused)
    if reader.at_eof() or reader._eof:  # type: ignore[attr-defined]
        stream.eof_received()
    return stream


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
        raise HopClosed(peer_id, f"{peer_id} did not answer in time") from error
    except (P2PDaemonError, OSError, EOFError, ValueError) as error:
        raise HopClosed(peer_id, f"cannot open a stream to {peer_id}: {error}") from error
