"""A peer's node and its clients in one process, for the engine's benchmark: the real node, its links in memory.

Messages, leases, scheduler and device thread are the peer's own; the network between is a queue of bytes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import torch
from shoal.blocks.kv import PAGE_TOKENS
from shoal.peer.book import Offer
from shoal.peer.channel import Channel
from shoal.peer.engine import DeviceEngine
from shoal.peer.link import Patience
from shoal.peer.node import Node, NodeConfig
from shoal.peer.settle import settle, trim
from shoal.peer.wire import Buffer, Close, Hidden, Message, Open, Opened, Receipt, Refused, Want, session_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from shoal.blocks.span import Span

NAMESPACE, REVISION, AGENT = bytes(32), "bench", "shoal-bench"
PATIENT = Patience(ping_after_s=1e6, dead_after_s=2e6)


class MemoryStream:
    """One end of a byte stream inside this process."""

    crowd = None

    def __init__(self, remote: str) -> None:
        self.remote = remote
        self.other: MemoryStream
        self._arrived: asyncio.Queue[bytes] = asyncio.Queue()
        self._ended = False

    async def read(self) -> bytes:
        data = b"" if self._ended else await self._arrived.get()
        self._ended = not data
        return data

    def write(self, *buffers: Buffer) -> None:
        self.other._arrived.put_nowait(b"".join(buffers))

    async def drain(self) -> None:
        return

    def queued_bytes(self) -> int:
        return 0

    def close(self) -> None:
        self._arrived.put_nowait(b"")
        self.other._arrived.put_nowait(b"")


class MemoryTransport:
    """Takes streams of clients in this process; opens none, since the node is the route's last hop."""

    def __init__(self) -> None:
        self.peer_id = "peer"
        self.serving = asyncio.Event()
        self._serve: Callable[[MemoryStream], Awaitable[None]]

    async def connect(self, peer_id: str, addrs: Sequence[str]) -> MemoryStream:
        raise ConnectionError(f"no next hop {peer_id} at {addrs}: the node is the route's last")

    async def serve(self, on_stream: Callable[[MemoryStream], Awaitable[None]]) -> None:
        self._serve = on_stream
        self.serving.set()
        await asyncio.Event().wait()

    def whence(self, _peer_id: str) -> str | None:
        """See `Transport`: clients here have no address."""
        return None

    def dial(self, client: str) -> tuple[MemoryStream, Awaitable[None]]:
        """A client's end of a new stream, and what serves the other."""
        ours, theirs = MemoryStream(self.peer_id), MemoryStream(client)
        ours.other, theirs.other = theirs, ours
        return ours, self._serve(theirs)


class Client:
    """Opens leases on the node and pushes hidden states through them; one step of a lease at a time."""

    def __init__(self, stream: MemoryStream, span: Span) -> None:
        self._span = span
        self._channel = Channel(stream, AGENT, PATIENT, time.perf_counter)
        self._waiting: dict[bytes, asyncio.Future[Message]] = {}
        self._receipts: dict[bytes, list[float]] = defaultdict(list)
        self._receipt = asyncio.Event()
        self.dtype = str(span.dtype).removeprefix("torch.")

    async def run(self) -> None:
        """Read answers until the link closes."""
        await self._channel.run(self._on_message)

    def close(self) -> None:
        """Close the link."""
        self._channel.close()

    async def open(self, tokens: int, prefix: tuple[bytes, ...] = ()) -> tuple[bytes, int]:
        """A lease for `tokens`; returns its session and how many tokens of the prefix are cached."""
        session = session_name("client", os.urandom(8))
        opened = await self._ask(
            Open(
                session=session, epoch=1, namespace=NAMESPACE, revision=REVISION, start=self._span.blocks.start,
                stop=self._span.blocks.stop, max_tokens=tokens, next_step=0, dtype=self.dtype, prev="", next="",
                next_addrs=(), final=True, forward_replay=False, proof=b"", prefix=prefix,
            )
        )  # fmt: skip
        assert isinstance(opened, Opened)
        return session, opened.cached

    async def step(self, session: bytes, step: int, position: int, hidden: torch.Tensor) -> Buffer:
        """Hidden states `[n, width]` on the CPU through the span; the last one's bytes come back."""
        answer = await self._ask(
            Hidden(
                session=session, epoch=1, step=step, position=position, count=len(hidden), want=Want.LAST,
                replay=False, rows=len(hidden), width=hidden.shape[1], dtype=self.dtype,
                payload=hidden.contiguous().view(torch.uint8).numpy().data.cast("B"),
            )
        )  # fmt: skip
        assert isinstance(answer, Hidden)
        return answer.payload

    async def spent_s(self, session: bytes, steps: int) -> float:
        """Seconds that the peer waited and computed for a lease's first `steps` steps, by its own receipts."""
        while len(self._receipts[session]) < steps:
            self._receipt.clear()
            await self._receipt.wait()
        return sum(self._receipts[session])

    def end(self, session: bytes) -> None:
        """Close a lease."""
        self._channel.send(Close(session=session, epoch=1))

    async def _ask(self, message: Open | Hidden) -> Message:
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[message.session] = future
        self._channel.send(message)
        return await future

    def _on_message(self, _channel: Channel, message: Message) -> None:
        if isinstance(message, Refused):
            self._waiting.pop(message.session).set_exception(RuntimeError(f"refused: {message.text}"))
        elif isinstance(message, Receipt):
            self._receipts[message.session].append(message.queue_s + message.compute_s)
            self._receipt.set()
        elif isinstance(message, (Opened, Hidden)):
            self._waiting.pop(message.session).set_result(message)


@asynccontextmanager
async def served(span: Span) -> AsyncIterator[tuple[Node, Client]]:
    """A node that serves `span`, and one client of it."""
    engine = DeviceEngine(span, PAGE_TOKENS)
    offer = Offer(
        NAMESPACE, REVISION, engine.start, engine.stop, engine.width, engine.n_pages, PAGE_TOKENS,
        lambda _proof, _client, _session: True,
    )  # fmt: skip
    transport = MemoryTransport()
    settle()  # as a peer does before it serves
    try:
        async with (
            Node(NodeConfig(offer, AGENT, patience=PATIENT, at_rest=trim), engine, transport) as node,
            asyncio.TaskGroup() as tasks,
        ):
            stream, serving = transport.dial("client")
            client = Client(stream, span)
            running = [tasks.create_task(_quietly(serving)), tasks.create_task(client.run())]
            yield node, client
            client.close()
            await asyncio.wait(running, timeout=5)
    finally:
        engine.close()


async def _quietly(serving: Awaitable[None]) -> None:
    await serving
