"""A network in memory: ordered streams with delays from a seeded generator, and all that may happen to them.

As TCP does, a stream never loses bytes while it lives: it stalls, and goes on where it was, or it is reset. Machines
die, hang and come back; ways between two of them are cut in one direction or both, slow down, stall or are torn in the
middle of a frame. Counts legs (frames that carry hidden states) so that tests can assert on them; writes a trace.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, TypeAlias

from shoal.peer.errors import HopClosed, ProtocolError
from shoal.peer.wire import PREFIX, decode

from tests.sim.clock import VirtualLoop

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
    from contextvars import Context

    from shoal.peer.wire import Buffer, Message

Way: TypeAlias = tuple[str, str]  # from one machine to another
REPEAT_S = 0.2  # after which TCP sends a lost packet again; twice as long after each further loss
LATE_S = 2.0  # a stream that nobody waits for any more opens at most so long after the way is there again
_RESET = None  # arrives in place of bytes


class SimStream:
    """One end of a stream. Bytes written come out at the other end after the way's delay, in order."""

    crowd = None

    def __init__(self, net: SimNetwork, local: str, remote: str) -> None:
        self.net, self.local, self.remote = net, local, remote
        self.other: SimStream
        self._arrived: asyncio.Queue[bytes] = asyncio.Queue()
        self._last_due = 0.0
        self._ended = False
        self._torn = False
        self.is_closed = False

    async def read(self) -> bytes:
        if self._ended:
            return b""
        data = await self._arrived.get()
        self._ended = not data
        return data

    def write(self, *buffers: Buffer) -> None:
        if self.is_closed:
            return
        data = b"".join(buffers)
        if self._torn:
            self._deliver(data[: len(data) // 2])
            self._deliver(_RESET)
            self.reset()
        else:
            self._deliver(data)

    async def drain(self) -> None:
        return

    def queued_bytes(self) -> int:
        return 0

    def close(self) -> None:
        if self.is_closed:
            return
        self._end()
        if self.local not in self.net.dead:
            self._deliver(b"")

    def reset(self) -> None:
        """The other machine is gone: what is under way is lost."""
        if not self.is_closed:
            self._end()

    def tear(self) -> None:
        """Both ends break in the middle of what is written next."""
        self._torn = True

    def stall(self, until: float) -> None:
        """Nothing arrives before then (a packet was lost, and its repetition takes so long)."""
        self._last_due = max(self._last_due, until)

    def _end(self) -> None:
        self.is_closed = True
        self.net.forget(self)
        self._arrived.put_nowait(b"")

    def _deliver(self, data: bytes | None) -> None:
        # Timers that fall due together fire in no set order: bytes of one stream never fall due together.
        due = max(self._last_due + 1e-7, self.net.now() + self.net.delay(self.local, self.remote))
        self._last_due = due
        self.net.note(self.local, self.remote, data or b"")
        asyncio.get_running_loop().call_at(due, self.arrive, data, context=self.net.context)

    def arrive(self, data: bytes | None) -> None:
        """What was written has crossed the network, unless something holds it up."""
        if (held := self.net.holding(self.local, self.remote)) is not None:
            held.append((self, data))
        elif self.remote in self.net.dead or self.other.is_closed:
            return
        elif data is _RESET:
            self.other.reset()
        else:
            self.other.put(data)

    def put(self, data: bytes) -> None:
        self._arrived.put_nowait(data)


class SimNetwork:
    """All streams between simulated machines. `delay_s`: base one-way delay; `jitter_s`: seeded addition; `extra_s`:
    more of it for one machine; `loss`: share of packets that arrive only when they are sent again; `hung`, `cut`: what
    cannot go on, and all that waits for it."""

    def __init__(self, rng: random.Random, delay_s: float = 0.005, jitter_s: float = 0.002) -> None:
        self._rng = rng
        self.context = copy_context()  # of what is under way: it is on no machine
        self.delay_s, self.jitter_s = delay_s, jitter_s
        self.extra_s: dict[str, float] = {}
        self.loss = 0.0
        self.servers: dict[str, Callable[[SimStream], Awaitable[None]]] = {}
        self.places: dict[str, Context] = {}  # where they run, if on a machine
        self.dead: set[str] = set()
        self.offline: set[str] = set()  # machines that cannot open streams: their network daemon is down
        self.hung: dict[str, list[tuple[SimStream, bytes | None]]] = {}
        self.cut: dict[Way, list[tuple[SimStream, bytes | None]]] = {}
        self._streams: dict[str, dict[SimStream, None]] = defaultdict(dict)  # by their local end
        self._abandoned: list[Way] = []  # whoever wanted a stream waits no more, but it may still come about
        self.apart: set[Way] = set()  # who cannot open a stream to whom
        self.trace: list[tuple[float, str, str, int]] = []
        self.listeners: list[Callable[[str, str, bytes], None]] = []  # to all that is sent: from, to, frames
        self.legs = 0  # frames that carried hidden states
        self.changed = asyncio.Event()
        self.tasks = asyncio.TaskGroup()

    def delay(self, source: str, target: str) -> float:
        extra_s = self.extra_s.get(source, 0.0) + self.extra_s.get(target, 0.0) if self.extra_s else 0.0
        again_s = REPEAT_S
        while self.loss and self._rng.random() < self.loss:
            extra_s, again_s = extra_s + again_s, 2 * again_s
        return self.delay_s + extra_s + self._rng.random() * self.jitter_s

    def now(self) -> float:
        """The world's time, whatever the machine that asks believes."""
        loop = asyncio.get_running_loop()
        return loop.now if isinstance(loop, VirtualLoop) else loop.time()

    def note(self, source: str, target: str, data: bytes) -> None:
        self.trace.append((round(self.now(), 9), source, target, len(data)))
        for listen in self.listeners:
            listen(source, target, data)
        start = 0
        while len(data) - start >= PREFIX.size:
            header, payload = PREFIX.unpack_from(data, start)
            self.legs += bool(payload)
            start += PREFIX.size + header + payload

    # -- machines -------------------------------------------------------------------------------------------------

    def kill(self, peer_id: str) -> None:
        """kill -9: streams reset after one leg, nothing listens any more."""
        self.dead.add(peer_id)
        if self.hung.pop(peer_id, None) is not None:
            self._loop().continue_machine(peer_id)  # what runs there is cancelled, and reaches nobody
        self.servers.pop(peer_id, None)
        self.reset(peer_id)

    def reset(self, name: str, other: str | None = None) -> None:
        """Every stream of a machine (to one other) ends at once; the other ends learn it after one leg."""
        for stream in self.streams_of(name, other):
            stream._deliver(_RESET)
            stream.reset()

    def forsake(self, name: str, other: str) -> None:
        """A machine's ends of streams to another one are gone, and the other one is not told."""
        for stream in self.streams_of(name, other):
            stream.reset()

    def revive(self, peer_id: str) -> None:
        """The machine is back; its new process must serve anew."""
        self.dead.discard(peer_id)

    def hang(self, peer_id: str) -> None:
        """SIGSTOP: nothing gets in or out until `resume`."""
        self.hung.setdefault(peer_id, [])

    def resume(self, peer_id: str) -> None:
        self._flush(self.hung.pop(peer_id, []))

    def freeze(self, name: str) -> None:
        """As `hang`, and not even its timers go on."""
        self.hang(name)
        self._loop().stop_machine(name)

    async def thaw(self, name: str, *, clock_stood: bool, late_s: float) -> None:
        """It goes on: first its timers, then, after `late_s`, what came meanwhile. `clock_stood`: for it no time has
        passed, as after a laptop was closed."""
        self._loop().continue_machine(name, clock_stood=clock_stood)
        await asyncio.sleep(late_s)
        if name in self.hung:
            self.resume(name)

    @staticmethod
    def _loop() -> VirtualLoop:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        return loop

    # -- ways -----------------------------------------------------------------------------------------------------

    def part(self, ways: Iterable[Way]) -> None:
        """Nothing arrives that way any more; nobody is told."""
        for way in ways:
            self.cut.setdefault(way, [])

    def heal(self, ways: Iterable[Way]) -> None:
        """The way is there again: streams that both ends kept go on where they were."""
        self._flush([item for way in ways for item in self.cut.pop(way, [])])

    def reaches(self, source: str, target: str) -> bool:
        """Whether a message would arrive."""
        return not ({source, target} & (self.dead | self.hung.keys()) or (source, target) in self.cut)

    def holding(self, source: str, target: str) -> list[tuple[SimStream, bytes | None]] | None:
        """Where what goes that way must wait; None if it need not."""
        for name in (source, target):
            if name in self.hung:
                return self.hung[name]
        return self.cut.get((source, target))

    def blocked(self, source: str, target: str) -> bool:
        """Whether a new stream between them would wait."""
        return self.holding(source, target) is not None or self.holding(target, source) is not None

    def open(self, source: str, target: str) -> SimStream:
        """A stream, by its near end. Errors: `HopClosed`."""
        serve = self.servers.get(target)
        none = serve is None or (source, target) in self.apart
        if none or self.dead & {source, target} or self.offline & {source, target}:
            raise HopClosed(target, "cannot be reached")
        ours, theirs = SimStream(self, source, target), SimStream(self, target, source)
        ours.other, theirs.other = theirs, ours
        self.add(ours)
        self.add(theirs)
        self.tasks.create_task(_quietly(serve(theirs)), context=self.places.get(target, self.context).copy())
        return ours

    def _open_late(self, source: str, target: str) -> None:
        if self.blocked(source, target):
            self._abandoned.append((source, target))
            return
        with suppress(HopClosed):
            self.open(source, target).close()

    def abandon(self, source: str, target: str) -> None:
        """Who wanted a stream waits no more. As with libp2p it comes about all the same once the way is there."""
        if self.blocked(source, target):
            self._abandoned.append((source, target))

    def streams_of(self, local: str, remote: str | None = None) -> list[SimStream]:
        """Ends of open streams that lie at a machine (and lead to one other)."""
        return [stream for stream in self._streams[local] if remote in (None, stream.remote)]

    def add(self, stream: SimStream) -> None:
        self._streams[stream.local][stream] = None

    def forget(self, stream: SimStream) -> None:
        self._streams[stream.local].pop(stream, None)

    def _flush(self, held: Iterable[tuple[SimStream, bytes | None]]) -> None:
        for stream, data in held:
            stream.arrive(data)
        waiting, self._abandoned = self._abandoned, []
        for way in waiting:
            asyncio.get_running_loop().call_later(self._rng.random() * LATE_S, self._open_late, *way)
        self.changed.set()
        self.changed.clear()


class SimTransport:
    """`Transport` of one simulated peer."""

    def __init__(self, net: SimNetwork, peer_id: str) -> None:
        self.net, self.peer_id = net, peer_id
        self.serving = asyncio.Event()

    def whence(self, _peer_id: str) -> str | None:
        return None

    async def connect(self, peer_id: str, addrs: Sequence[str]) -> SimStream:
        net, me = self.net, self.peer_id
        await asyncio.sleep(2 * net.delay(me, peer_id))
        try:
            while net.blocked(me, peer_id):
                await net.changed.wait()  # for ever, if nothing changes: whoever calls knows how long to wait
        except asyncio.CancelledError:
            net.abandon(me, peer_id)
            raise
        return net.open(me, peer_id)

    async def serve(self, on_stream: Callable[[SimStream], Awaitable[None]]) -> None:
        self.net.servers[self.peer_id], self.net.places[self.peer_id] = on_stream, copy_context()
        self.serving.set()
        await asyncio.Event().wait()


async def _quietly(serving: Awaitable[None]) -> None:
    await serving


def messages_in(data: bytes) -> Iterator[Message | None]:
    """What a write brings; None for a torn frame."""
    while len(data) >= PREFIX.size:
        header, payload = PREFIX.unpack_from(data)
        body, end = PREFIX.size + header, PREFIX.size + header + payload
        try:
            yield decode(data[PREFIX.size : body], data[body:end])
        except ProtocolError:
            yield None
        data = data[end:]
