"""The socket by which a volunteer steers a running peer: one line of JSON each way. Knows no node and no pause."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from shoal.peer.config import PeerError
from shoal.peer.sockets import bind

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import TypeAlias

    Answer: TypeAlias = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

logger = logging.getLogger("shoal.peer")

MAX_REQUEST_BYTES = 4096
REQUEST_S = 5.0
MAX_ASKING = 16


class RequestError(Exception):
    """A request that this peer does not understand; the message goes back to who asked."""


@asynccontextmanager
async def controlled(peer_id: str, answer: Answer) -> AsyncIterator[None]:
    """Answer requests while this lasts. Without a place for the socket the peer runs all the same, and says so.

    `answer` may raise `RequestError`.
    """
    try:
        listening, path = bind(peer_id)
    except (PeerError, OSError) as error:
        logger.warning("`shoal pause` will not find this peer: %s", error)
        yield
        return
    try:
        async with asyncio.TaskGroup() as tasks:
            accepting = tasks.create_task(_accept(listening, answer))
            try:
                yield
            finally:
                accepting.cancel()
    finally:
        listening.close()
        with suppress(OSError):
            path.unlink()


async def _accept(listening: socket.socket, answer: Answer) -> None:
    places = asyncio.Semaphore(MAX_ASKING)
    async with asyncio.TaskGroup() as tasks:
        while True:
            await places.acquire()
            line, _ = await asyncio.get_running_loop().sock_accept(listening)
            tasks.create_task(_serve(line, answer)).add_done_callback(lambda _: places.release())


async def _serve(line: socket.socket, answer: Answer) -> None:
    """One request. Who asks and goes away again hurts nobody."""
    reader, writer = await asyncio.open_unix_connection(sock=line, limit=MAX_REQUEST_BYTES)
    try:
        with suppress(ConnectionError, TimeoutError):
            if raw := await _line(reader):
                reply = await _reply(raw, answer)
                writer.write(json.dumps(reply).encode() + b"\n")
                await writer.drain()
    finally:
        writer.close()


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(REQUEST_S):
            return await reader.readline()
    except ValueError:  # longer than a request may be
        return b"?"


async def _reply(raw: bytes, answer: Answer) -> dict[str, Any]:
    try:
        request = json.loads(raw)
    except (ValueError, RecursionError):
        return {"error": "a request is one line of JSON"}
    if not isinstance(request, dict):
        return {"error": "a request is a JSON object"}
    try:
        return await answer(request)
    except RequestError as error:
        return {"error": str(error)}
