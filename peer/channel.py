"""The async shell of one link: pumps a stream's bytes through the sans-IO core. Knows no sessions and no tensors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shoal.peer.errors import HopClosed, ProtocolError
from shoal.peer.link import Link, Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shoal.peer.transport import Stream
    from shoal.peer.wire import Buffer, Message

MAX_QUEUED_BYTES = 512 * 1024 * 1024


class Channel:
    """A stream with a link on it. `run` reads until the end; `send` may be called at any time before."""

    def __init__(self, stream: Stream, agent: str, patience: Patience, clock: Callable[[], float]) -> None:
        self.remote = stream.remote
        self._stream = stream
        self._now = clock  # finer than the loop's own, which counts whole milliseconds under uvloop
        self.link = Link(agent, self._now(), patience)
        self.closed = False
        self.why = "closed the connection"  # what ended it, for a sentence that begins with the other side's name
        self._loop = asyncio.get_running_loop()
        self._corked: list[Buffer] = []  # leaves in one write, and mostly in one packet, when this tick is over
        self._say_own()

    def send(self, message: Message) -> None:
        """Queue one message; never blocks. Errors: `HopClosed` when the link is gone."""
        if self.closed:
            raise HopClosed(self.remote, f"the link to {self.remote} is closed")
        self._write(self.link.send(message))

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
        """Send what waits and close the stream; `run` then returns. Idempotent."""
        self._uncork()
        self.closed = True
        self.link.close()
        self._stream.close()

    async def _read(self, on_message: Callable[[Channel, Message], None]) -> None:
        while not self.closed and (data := await self._stream.read()):
            try:
                messages = self.link.receive(data, self._now())
            except ProtocolError as error:
                self.why = f"was given up: {error}"
                return
            self._say_own()
            for message in messages:
                on_message(self, message)

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
        """What the link itself has to say."""
        if self.link.outbox and not self.closed:
            waiting, self.link.outbox = self.link.outbox, []
            self._write(waiting)

    def _write(self, buffers: Iterable[Buffer]) -> None:
        if not self._corked:
            self._loop.call_soon(self._uncork)
        self._corked += buffers

    def _uncork(self) -> None:
        """A side that does not read must not fill our memory: past a limit its link is closed."""
        waiting, self._corked = self._corked, []
        if waiting and not self.closed:
            self._stream.write(*waiting)
            if self._stream.queued_bytes() > MAX_QUEUED_BYTES:
                self.why = "does not take what it is sent"
                self.close()
