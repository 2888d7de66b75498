"""A network in memory: ordered streams with delays from a seeded generator, peers that die, hang or come back.

Counts legs (frames that carry hidden states) so that tests can assert on them; writes a trace for determinism checks.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shoal.peer.errors import HopClosed
from shoal.peer.wire import PREFIX

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Sequence

    from shoal.peer.wire import Buffer


class SimStream:
    """One end of a stream. Bytes written come out at the other end after the link's delay, in order."""

    def __init__(self, net: SimNetwork, local: str, remote: str) -> None:
        self.net, self.local, self.remote = net, local, remote
        self.other: SimStream
        self._arrived: asyncio.Queue[bytes] = asyncio.Queue()
        self._last_due = 0.0
        self._ended = False
        self.is_closed = False

    async def read(self) -> bytes:
        if self._ended:
            return b""
        data = await self._arrived.get()
        self._ended = not data
        return data

    def write(self, *buffers: Buffer) -> None:
        if not self.is_closed:
            self._deliver(b"".join(buffers))

    async def drain(self) -> None:
        return

    def queued_bytes(self) -> int:
        return 0

    def close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self._arrived.put_nowait(b"")
        if self.local not in self.net.dead:
            self._deliver(b"")

    def reset(self) -> None:
        """The other machine is gone: what is under way is lost."""
        self.is_closed = True
        self._arrived.put_nowait(b"")

    def _deliver(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        # Timers that fall due together fire in no set order: bytes of one stream never fall due together.
        due = max(self._last_due + 1e-7, loop.time() + self.net.delay(self.local, self.remote))
        self._last_due = due
        self.net.note(self.local, self.remote, data)
        loop.call_at(due, self._arrive, data)

    def _arrive(self, data: bytes) -> None:
        hung = self.net.hung
        if self.local in hung or self.remote in hung:
            hung[self.local if self.local in hung else self.remote].append((self, data))
        elif self.remote not in self.net.dead and not self.other.is_closed:
            self.other.put(data)

    def put(self, data: bytes) -> None:
        self._arrived.put_nowait(data)


class SimNetwork:
    """All streams between simulated peers. `delay_s`: base one-way delay; `jitter_s`: seeded addition."""

    def __init__(self, rng: random.Random, delay_s: float = 0.005, jitter_s: float = 0.002) -> None:
        self._rng = rng
        self.delay_s, self.jitter_s = delay_s, jitter_s
        self.servers: dict[str, Callable[[SimStream], Awaitable[None]]] = {}
        self.dead: set[str] = set()
        self.hung: dict[str, list[tuple[SimStream, bytes]]] = {}
        self.streams: list[SimStream] = []
        self.trace: list[tuple[float, str, str, int]] = []
        self.legs = 0  # frames that carried hidden states
        self.resumed = asyncio.Event()
        self.tasks = asyncio.TaskGroup()

    def delay(self, _source: str, _target: str) -> float:
        return self.delay_s + self._rng.random() * self.jitter_s

    def note(self, source: str, target: str, data: bytes) -> None:
        self.trace.append((round(asyncio.get_running_loop().time(), 9), source, target, len(data)))
        while len(data) >= PREFIX.size:
            header, payload = PREFIX.unpack(data[: PREFIX.size])
            self.legs += bool(payload)
            data = data[PREFIX.size + header + payload :]

    def kill(self, peer_id: str) -> None:
        """kill -9: streams reset after one leg, nothing listens any more."""
        self.dead.add(peer_id)
        self.servers.pop(peer_id, None)
        loop = asyncio.get_running_loop()
        for stream in self._streams_of(peer_id):
            loop.call_later(self.delay(peer_id, stream.other.local), stream.other.reset)
            stream.reset()

    def revive(self, peer_id: str) -> None:
        """The machine is back; its new process must serve anew."""
        self.dead.discard(peer_id)

    def hang(self, peer_id: str) -> None:
        """SIGSTOP: nothing gets in or out until `resume`."""
        self.hung.setdefault(peer_id, [])

    def resume(self, peer_id: str) -> None:
        for stream, data in self.hung.pop(peer_id, []):
            stream._arrive(data)
        self.resumed.set()
        self.resumed.clear()

    def _streams_of(self, peer_id: str) -> list[SimStream]:
        return [stream for stream in self.streams if stream.local == peer_id and not stream.is_closed]


class SimTransport:
    """`Transport` of one simulated peer."""

    def __init__(self, net: SimNetwork, peer_id: str) -> None:
        self.net, self.peer_id = net, peer_id
        self.serving = asyncio.Event()

    async def connect(self, peer_id: str, addrs: Sequence[str]) -> SimStream:
        await asyncio.sleep(2 * self.net.delay(self.peer_id, peer_id))
        if peer_id in self.net.hung:
            await self.net.resumed.wait()
        serve = self.net.servers.get(peer_id)
        if serve is None or self.net.dead & {peer_id, self.peer_id}:
            raise HopClosed(peer_id, f"{peer_id} cannot be reached")
        ours, theirs = SimStream(self.net, self.peer_id, peer_id), SimStream(self.net, peer_id, self.peer_id)
        ours.other, theirs.other = theirs, ours
        self.net.streams += [ours, theirs]
        self.net.tasks.create_task(_quietly(serve(theirs)))
        return ours

    async def serve(self, on_stream: Callable[[SimStream], Awaitable[None]]) -> None:
        self.net.servers[self.peer_id] = on_stream
        self.serving.set()
        await asyncio.Event().wait()


async def _quietly(serving: Awaitable[None]) -> None:
    await serving
