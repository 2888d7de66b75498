"""A byte stream over a socket of asyncio's, TLS or not. No messages, no addresses.

Bytes are read straight from the socket's transport, since asyncio's StreamReader copies each of them twice more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, cast

from shoal.peer.errors import HopClosed
from shoal.peer.wire import size_of

if TYPE_CHECKING:
    from shoal.peer.callers import Crowd

CLOSE_TIMEOUT_S = 5.0  # what is queued when a stream is closed may take this long to leave
READ_CHUNK_BYTES = 256 * 1024  # at most so much in one read()
PAUSE_READING_BYTES = 1024 * 1024  # the other side is held back while so much lies unread
QUEUE_HIGH_BYTES = 1024 * 1024  # drain() waits while more than this is queued
JOIN_BYTES = 64 * 1024  # buffers smaller than this in all leave in one write, and so in one packet


class SocketStream(asyncio.Protocol):
    """A `transport.Stream` over an asyncio writer's transport. received: bytes read already; paused: reading is.
    maddr: where a side that began it is seen; crowd: what its network's frames cost."""

    crowd: Crowd | None = None

    def __init__(
        self, remote: str, writer: asyncio.StreamWriter, received: bytes, paused: bool, maddr: str = ""
    ) -> None:
        self.remote, self.maddr = remote, maddr
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
        """See `transport.Stream`. One reader at a time."""
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
        """See `transport.Stream`."""
        if self._ended or self._transport.is_closing():
            return
        if len(buffers) > 1 and size_of(buffers) <= JOIN_BYTES:
            self._transport.write(b"".join(buffers))
            return
        for buffer in buffers:
            self._transport.write(buffer)

    async def drain(self) -> None:
        """See `transport.Stream`."""
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
        """See `transport.Stream`."""
        return self._transport.get_write_buffer_size()

    def close(self) -> None:
        """See `transport.Stream`. What a stalled peer does not take within 5 s is thrown away."""
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


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def take_over(
    peer_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, maddr: str = ""
) -> SocketStream:
    """Our stream in place of asyncio's pair, with whatever the reader holds already."""
    # There is no public way to ask for these three.
    received, paused = bytes(reader._buffer), reader._paused  # type: ignore[attr-defined]
    stream = SocketStream(peer_id, writer, received, paused, maddr)
    if reader.at_eof() or reader._eof:  # type: ignore[attr-defined]
        stream.eof_received()
    return stream
