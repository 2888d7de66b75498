"""The async shell of one link: pumps a stream's bytes through the sans-IO core. Knows no sessions and no tensors.

Small messages leave at once while the line is free; what it does not take yet waits in `Turns`, where each session has
its turn, until `Flow` (the line's) and `Line` (this machine's) say that there is room.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from shoal.peer.errors import HopClosed, ProtocolError
from shoal.peer.line import Line
from shoal.peer.link import Link, Patience
from shoal.peer.turns import Turns
from shoal.peer.wire import Hidden, Mark, encode, size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal.peer.callers import Crowd
    from shoal.peer.toll import Toll
    from shoal.peer.transport import Stream
    from shoal.peer.wire import Buffer, Message

MAX_QUEUED_BYTES: Final = 512 * 1024 * 1024  # past this a link is closed: the other side takes nothing
CLOGGED_BYTES: Final = 4 * 1024 * 1024  # past this, or CLOGGED_S of the line's time, whoever makes more should wait
CLOGGED_S: Final = 1.0
LAST_BYTES: Final = 64 * 1024  # a message up to this size is still sent when the link is closed
SHARED_S: Final = 2.0  # a session that has sent something within this time shares the line


class Channel:
    """A stream with a link on it. `run` reads until the end; `send` may be called at any time before. `on_room` is
    called when what waits has become little again. `waiting`: what is to be sent first. `toll`: what frames cost a
    stranger."""

    def __init__(
        self,
        stream: Stream,
        agent: str,
        patience: Patience,
        clock: Callable[[], float],
        line: Line | None = None,
        on_room: Callable[[], None] | None = None,
        waiting: Turns | None = None,
        toll: Toll | None = None,
    ) -> None:
        self.remote = stream.remote
        self._stream = stream
        self._now = clock  # finer than the loop's own, which counts whole milliseconds under uvloop
        self.link = Link(agent, self._now(), patience)
        self.closed = False
        self.why = "closed the connection"  # what ended it, for a sentence that begins with the other side's name
        self._loop = asyncio.get_running_loop()
        self._line = line or Line()
        self._on_room = on_room or (lambda: None)
        self._corked: list[Buffer] = []  # leaves in one write, and mostly in one packet, when this tick is over
        self._turns = waiting if waiting is not None else Turns()
        self._tolls: list[Toll | Crowd] = [] if toll is None else [toll]
        if toll is not None and stream.crowd is not None:
            self._tolls.append(stream.crowd)
        self._clogged = self._turns.bytes > self._clogged_bytes()
        self._sender, self._others_at = b"", -SHARED_S  # the last session to send, and when it was another one
        self._soon = False
        self._timer: asyncio.TimerHandle | None = None
        self._say_own()
        self._flush_soon()

    @property
    def clogged(self) -> bool:
        """Whether so much waits that whoever makes more should wait too."""
        return self._clogged

    @property
    def queued_bytes(self) -> int:
        """What waits here to be sent."""
        return self._turns.bytes + self._stream.queued_bytes()

    def send(self, message: Message) -> None:
        """Queue one message; never blocks. Errors: `HopClosed` when the link is gone."""
        if self.closed:
            raise HopClosed(self.remote, f"the link to {self.remote} is closed")
        self._note_sender(getattr(message, "session", b""))
        if self._turns or not self._leaves_now(message):
            self._turns.add(message)
            self._clogged = self._clogged or self._turns.bytes > self._clogged_bytes()
            self._flush_soon()
        else:
            self._cork(self.link.send(message))

    def flush(self) -> None:
        """Let what was sent in this tick leave now, not at the tick's end."""
        if self._soon:
            self._flush()

    def forget(self, session: bytes, epoch: int) -> None:
        """What waits for a lease that has ended need not be sent."""
        self._turns.forget(session, epoch)

    def ping(self) -> None:
        """Measure the round trip."""
        self.link.ping(self._now())
        self._say_own()

    async def run(self, on_message: Callable[[Channel, Message], None]) -> None:
        """Read and dispatch until either side closes, breaks the protocol or falls silent; then close."""
        try:
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(self._watch())
                await self._read(on_message)
                watch.cancel()
        finally:
            self.close()

    def close(self) -> None:
        """Send what waits and is not large, and close the stream; `run` then returns. Idempotent."""
        if self.closed:
            return
        while (piece := self._turns.next(LAST_BYTES, small=True)) is not None:
            self._corked += piece.buffers
        self._stream.write(*self._corked)
        self._corked = []
        self.closed, self._clogged = True, False
        if self._timer is not None:
            self._timer.cancel()
        self.link.close()
        self._stream.close()
        self._on_room()

    async def _read(self, on_message: Callable[[Channel, Message], None]) -> None:
        while not self.closed:
            data = b"" if self.link.unread else await self._stream.read()
            if not data and not self.link.unread:
                return
            now, flow, frames = self._now(), self.link.flow, self.link.frames
            proven, arrived = flow.proven, flow.under_way
            try:
                messages = self.link.receive(data, now)
            except ProtocolError as error:
                self.why = f"was given up: {error}"
                return
            self._say_own()
            if flow.under_way != arrived and self._turns:
                self._flush_soon()
            if flow.proven != proven:
                self._line.saw(flow.proven, now)
            for message in messages:
                on_message(self, message)
            self._line.down.take(len(data), now)
            wait_s = self._line.down.wait_s(self._now())
            for toll in self._tolls:
                wait_s = max(wait_s, toll.wait_s(self.link.frames - frames, len(data), now))
            if wait_s > 0.0 or self.link.unread:
                await asyncio.sleep(wait_s)  # what comes meanwhile stays with the sender

    async def _watch(self) -> None:
        """Ping a quiet link, and close a dead one."""
        while not self.closed:
            # An answer meanwhile may bring the deadline forward: it is looked at again before a quiet link is due.
            due = min(self.link.deadline(), self._now() + self.link.patience.ping_after_s)
            due = max(due, self._now() + 0.01)
            await asyncio.sleep(due - self._now())
            if not self.link.on_timer(self._now(), due):
                self.why = "fell silent"
                self.close()
                return
            self._say_own()

    def _say_own(self) -> None:
        """What the link itself has to say: before all others, and whatever the line takes."""
        if self.link.outbox and not self.closed:
            waiting, self.link.outbox = self.link.outbox, []
            self._cork(waiting)

    def _note_sender(self, session: bytes) -> None:
        if session and session != self._sender:
            now = self._now()
            self._sender, self._others_at = session, now if self._sender else -SHARED_S

    def _leaves_now(self, message: Message) -> bool:
        flow = self.link.flow
        size = memoryview(message.payload).nbytes if isinstance(message, Hidden) else 0
        return size <= flow.part_bytes and flow.room() and not self._line.up.wait_s(self._now())

    def _clogged_bytes(self) -> int:
        return max(CLOGGED_BYTES, int(CLOGGED_S * self.link.flow.rate))

    def _cork(self, buffers: Sequence[Buffer]) -> None:
        self._corked += buffers
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._soon:
            self._soon = True
            self._loop.call_soon(self.flush)

    def _flush(self) -> None:
        """Write what may leave now."""
        self._soon = False
        if self.closed:
            return
        now, out = self._now(), self._corked
        self._corked = []
        if out:
            self._count(size_of(out), now, out)
        self._take_turns(now, out)
        if out:
            self._stream.write(*out)
        if self._clogged and 2 * self._turns.bytes < self._clogged_bytes():
            self._clogged = False
            self._on_room()
        if self.queued_bytes > MAX_QUEUED_BYTES:
            self.why = "does not take what it is sent"
            self.close()

    def _take_turns(self, now: float, out: list[Buffer]) -> None:
        flow = self.link.flow
        flow.shared = self._turns.sessions > 1 or now - self._others_at < SHARED_S
        while self._turns:
            if (wait_s := self._line.up.wait_s(now)) > 0.0:
                self._flush_in(wait_s)
                return
            free = flow.under_way < 2 * flow.window
            piece = self._turns.next(flow.part_bytes, small=not flow.room()) if free else None
            if piece is None:
                self._mark(flow.stuck(now), out)
                return
            out += piece.buffers
            self._count(piece.size, now, out)

    def _flush_in(self, wait_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(wait_s, self._flush)

    def _mark(self, number: int | None, out: list[Buffer]) -> None:
        if number is not None:
            out += encode(Mark(number=number))

    def _count(self, size: int, now: float, out: list[Buffer]) -> None:
        self._line.up.take(size, now)
        self._mark(self.link.flow.wrote(size, now, more=bool(self._turns)), out)
