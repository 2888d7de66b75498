"""Whose bytes go next on a link: sessions take turns, and large messages go in parts. Pure: no I/O, no clock.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): each session's next frame bears the virtual time at which
its earlier ones were paid for, and the smallest goes first. A session that sends little is therefore served at once,
whatever another has queued; messages of one session stay in order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shoal.peer.wire import MAX_PARTED, MAX_PARTED_BYTES, PREFIX, Close, Hidden, Part, encode

if TYPE_CHECKING:
    from shoal.peer.wire import Buffer, Message


@dataclass(slots=True)
class _Frame:
    """A message as bytes: `head` (prefix and header) and `payload`. ticket > 0: its first `at` bytes have gone."""

    message: Message
    head: Buffer
    payload: memoryview
    ticket: int = 0
    at: int = 0

    @property
    def left(self) -> int:
        return len(self.payload) - self.at


@dataclass(slots=True)
class _Queue:
    """One session's frames; `start`: the virtual time of the first."""

    start: float
    frames: deque[_Frame] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one frame that go in one go."""

    buffers: tuple[Buffer, ...]
    size: int


class Turns:
    """What waits to be sent. `bytes`: how much."""

    def __init__(self) -> None:
        self.bytes = 0
        self._queues: dict[bytes, _Queue] = {}
        self._paid: dict[bytes, float] = {}  # of sessions that wait no longer, while it is ahead of the virtual time
        self._time = 0.0
        self._tickets = 0
        self._parted: list[_Frame] = []  # begun and not through

    def __bool__(self) -> bool:
        return bool(self._queues)

    @property
    def sessions(self) -> int:
        """How many sessions have something waiting."""
        return len(self._queues)

    def add(self, message: Message) -> None:
        """Queue a message. The end of a lease takes what waits for it with it. Errors: `LocalProtocolError`."""
        session = getattr(message, "session", b"")
        if isinstance(message, Close):
            self.forget(session, message.epoch)
        head, *payload = encode(message)
        queue = self._queues.get(session)
        if queue is None:
            queue = self._queues[session] = _Queue(max(self._time, self._paid.pop(session, 0.0)))
        frame = _Frame(message, head, memoryview(payload[0] if payload else b"").cast("B"))
        queue.frames.append(frame)
        self.bytes += len(frame.head) + len(frame.payload)

    def forget(self, session: bytes, epoch: int) -> None:
        """Hidden states of a session up to an epoch are of no use any more. Of a message of which a part has gone the
        rest is taken back."""
        queue = self._queues.get(session)
        if queue is None:
            return
        kept: deque[_Frame] = deque()
        for frame in queue.frames:
            if not isinstance(frame.message, Hidden) or frame.message.epoch > epoch:
                kept.append(frame)
                continue
            self.bytes -= frame.left + (0 if frame.ticket else len(frame.head))
            if frame.ticket:
                self._parted.remove(frame)
                kept.append(_taken_back(frame))
                self.bytes += len(kept[-1].head)
        queue.frames = kept
        if not kept:
            del self._queues[session]

    def next(self, part_bytes: int, *, small: bool = False) -> Piece | None:
        """The piece that is due, with at most `part_bytes` of hidden states; `small`: no part of a larger message.
        None if there is none."""
        queues = self._queues
        if not queues:
            return None
        session = min(queues, key=lambda session: queues[session].start)
        if not self._may_go(queues[session].frames[0], part_bytes, small=small):
            order = sorted(queues, key=lambda session: queues[session].start)
            able = (name for name in order if self._may_go(queues[name].frames[0], part_bytes, small=small))
            if (found := next(able, None)) is None:
                return None
            session = found
        return self._take(session, part_bytes)

    def _may_go(self, frame: _Frame, part_bytes: int, *, small: bool) -> bool:
        if not frame.ticket and frame.left <= part_bytes:
            return True
        if small or frame.ticket:
            return not small
        begun = sum(len(other.payload) for other in self._parted)
        return len(self._parted) < MAX_PARTED and begun + len(frame.payload) <= MAX_PARTED_BYTES

    def _take(self, session: bytes, part_bytes: int) -> Piece:
        queue = self._queues[session]
        frame = queue.frames[0]
        if not frame.ticket and frame.left <= part_bytes:
            buffers: tuple[Buffer, ...] = (frame.head, frame.payload) if frame.left else (frame.head,)
            self.bytes -= len(frame.head) + frame.left
            frame.at = len(frame.payload)
        else:
            buffers = self._part(frame, part_bytes)
        size = sum(map(len, buffers))
        self._time = max(self._time, queue.start)
        queue.start += size
        if not frame.left:
            queue.frames.popleft()
        if not queue.frames:
            del self._queues[session]
            self._paid = {name: paid for name, paid in self._paid.items() if paid > self._time}
            self._paid[session] = queue.start
        return Piece(buffers, size)

    def _part(self, frame: _Frame, part_bytes: int) -> tuple[Buffer, ...]:
        header = b""
        if not frame.ticket:
            self._tickets += 1
            frame.ticket = self._tickets
            self._parted.append(frame)
            header = bytes(frame.head[PREFIX.size :])
            self.bytes -= len(frame.head)
        cut = frame.payload[frame.at : frame.at + part_bytes]
        frame.at += len(cut)
        self.bytes -= len(cut)
        if not frame.left:
            self._parted.remove(frame)
        return encode(Part(ticket=frame.ticket, left=frame.left, header=header, payload=cut))


def _taken_back(frame: _Frame) -> _Frame:
    """What tells the other side to forget the parts that it has."""
    part = Part(ticket=frame.ticket, left=0, header=b"", payload=b"")
    return _Frame(part, encode(part)[0], memoryview(b""))
