"""One framed link between two nodes: bytes in, messages out. Sans-IO: no sockets, no clock, no tensors.

States: HELLO (nothing but the other side's `Hello` is welcome) -> OPEN -> CLOSED. The core answers pings by itself and
says when it wants to be woken (`deadline`), so that a silent link is found dead.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from shoal.peer.errors import LocalProtocolError, RemoteProtocolError
from shoal.peer.flow import Flow
from shoal.peer.parts import Parts
from shoal.peer.toll import AT_ONCE
from shoal.peer.wire import (
    PREFIX,
    VERSION,
    Hello,
    Mark,
    Marked,
    Message,
    Part,
    Ping,
    Pong,
    decode,
    decode_prefix,
    encode,
)  # fmt: skip

if TYPE_CHECKING:
    from shoal.peer.wire import Buffer


LATE_S = 0.5
# Round trips that differ much tell of a line on which a packet may be sent again several times, each time later: its
# silences are longer. A line whose round trips are alike gets no more patience than it was given.
USUAL_SPREAD_S = 0.03
SILENCE_PER_SPREAD = 40.0
SMOOTHING = 0.25
BULK_BYTES = 4096  # behind what came in one go and is larger, an answer may be waiting


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a quiet link is left alone, and when a silent one counts as dead."""

    ping_after_s: float = 5.0
    dead_after_s: float = 15.0


# A hop that is silent for this long while somebody waits for it is taken for dead. The ping goes out early: a packet
# that is lost three times on its way must not pass for a death.
IMPATIENT = Patience(ping_after_s=0.5, dead_after_s=2.5)


class LinkState(Enum):
    """Where a link stands."""

    HELLO = auto()
    OPEN = auto()
    CLOSED = auto()


class Link:
    """Framing, greeting and keep-alive of one stream.

    `receive` takes what the stream gave and returns whole messages; `send` turns a message into buffers. What the link
    itself wants to say (greeting, pongs, pings) waits in `outbox`.
    """

    def __init__(self, agent: str, now: float, patience: Patience = Patience()) -> None:
        self.patience = patience
        self.state = LinkState.HELLO
        self.remote_agent = ""
        self.outbox: list[Buffer] = list(encode(Hello(version=VERSION, agent=agent)))
        self.flow = Flow()
        self._bytes = bytearray()
        self.frames = 0  # that came so far
        self.unread = False  # more of them lie here: `receive` with no bytes goes on
        self.parts = Parts()
        self._heard = now
        self._heeded = now  # when the other side last showed that it hears us, or its answer could have been waiting
        self._pinged: float | None = None
        self._nonce = 0
        self.rtt_s: float | None = None
        self._usual_s = 0.0  # smoothed round trip and its mean deviation, as TCP keeps them (RFC 6298)
        self._spread_s = 0.0

    def send(self, message: Message) -> tuple[Buffer, ...]:
        """Buffers of one message. Errors: `LocalProtocolError` on a closed link."""
        if self.state is LinkState.CLOSED:
            raise LocalProtocolError("the link is closed")
        return encode(message)

    def receive(self, data: Buffer, now: float) -> list[Message]:
        """Messages completed by `data` (greetings and keep-alive are kept inside), of AT_ONCE frames at most; none on a
        closed link.

        Errors: `RemoteProtocolError`.
        """
        if self.state is LinkState.CLOSED:
            return []
        self._heard = now
        if len(data) >= BULK_BYTES:
            self._heeded = now
        if self._bytes:
            self._bytes += data
            data = self._bytes
        messages: list[Message] = []
        done = self._take_all(memoryview(data), now, messages)
        if data is not self._bytes:
            self._bytes += memoryview(data)[done:]
        elif done:
            del self._bytes[:done]
        return messages

    @property
    def dead_after_s(self) -> float:
        """Silence after which the other side counts as dead: up to twice the given patience on an unsteady line."""
        more_s = SILENCE_PER_SPREAD * max(0.0, self._spread_s - USUAL_SPREAD_S)
        return self.patience.dead_after_s + min(more_s, self.patience.dead_after_s)

    def deadline(self) -> float:
        """When `on_timer` wants to be called next, on the caller's clock."""
        wait_s = self.patience.ping_after_s if self._pinged is None else self.dead_after_s
        return self._silent_since() + wait_s

    def on_timer(self, now: float, due: float | None = None) -> bool:
        """Ping a quiet link; False when the other side has been silent, or deaf, for too long and the link is dead.

        `due`: when this call was meant to come. If it is late, it is this program that was busy, and what came
        meanwhile has not been read yet: the other side gets another chance.
        """
        if due is not None and now - due > LATE_S:
            self._heard = now
            self.ping(now)
            return True
        if now - self._silent_since() >= self.dead_after_s:
            self.state = LinkState.CLOSED
            return False
        if self._pinged is None and now - self._heard >= self.patience.ping_after_s:
            self.ping(now)
        return True

    def ping(self, now: float) -> None:
        """Ask for a pong: `rtt_s` tells how long it took."""
        self._nonce += 1
        self._pinged = now
        self.outbox += encode(Ping(nonce=self._nonce))

    def close(self) -> None:
        """Nothing goes in or out any more."""
        self.state = LinkState.CLOSED

    def _silent_since(self) -> float:
        """When the other side was last heard, or last known to hear: who talks and answers no ping does not hear us."""
        return self._heard if self._pinged is None else min(self._heard, max(self._pinged, self._heeded))

    def _take_all(self, data: memoryview, now: float, messages: list[Message]) -> int:
        """Put the messages of all whole frames in `data` to `messages`; how many bytes these took."""
        done, last = 0, self.frames + AT_ONCE
        self.unread = False
        while len(data) - done >= PREFIX.size:
            if self.frames == last:
                self.unread = True
                break
            body = done + PREFIX.size
            header, payload = decode_prefix(data[done:body])
            end = body + header + payload
            if len(data) < end:
                self.parts.expect(payload)
                break
            # The payload is copied once, into memory of its own that a tensor may be laid over and keep.
            message = decode(data[body : body + header], bytearray(data[body + header : end]))
            done = end
            self.frames += 1
            if (passed := self._filter(message, now)) is not None:
                messages.append(passed)
        return done

    def _filter(self, message: Message, now: float) -> Message | None:
        if self.state is LinkState.HELLO:
            self._greet(message)
            return None
        if isinstance(message, Ping):
            self.outbox += encode(Pong(nonce=message.nonce))
            return None
        if isinstance(message, Pong):
            self._answered(message, now)
            return None
        if isinstance(message, Part):
            return self.parts.add(message)
        if isinstance(message, Mark):
            self.outbox += encode(Marked(number=message.number, at_us=int(now * 1e6)))
            return None
        if isinstance(message, Marked):
            if self.flow.answered(message.number, message.at_us / 1e6, now):
                self._heeded = now
            return None
        if isinstance(message, Hello):
            raise RemoteProtocolError("a second greeting on one link")
        return message

    def _answered(self, pong: Pong, now: float) -> None:
        if pong.nonce == self._nonce and self._pinged is not None:
            self.rtt_s = now - self._pinged
            self._pinged = None
            self._smooth(self.rtt_s)
            self.flow.pinged(self.rtt_s)

    def _smooth(self, rtt_s: float) -> None:
        if not self._usual_s:
            self._usual_s = rtt_s
        self._spread_s += SMOOTHING * (abs(rtt_s - self._usual_s) - self._spread_s)
        self._usual_s += SMOOTHING * (rtt_s - self._usual_s)

    def _greet(self, message: Message) -> None:
        if not isinstance(message, Hello):
            raise RemoteProtocolError("a link must begin with a greeting")
        if message.version != VERSION:
            raise RemoteProtocolError(f"the other side speaks wire version {message.version}, this one {VERSION}")
        self.remote_agent = message.agent
        self.state = LinkState.OPEN
