"""Puts messages together that come in parts, within bounds. Pure: bytes in, messages out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shoal.peer.errors import RemoteProtocolError
from shoal.peer.wire import MAX_PARTED, MAX_PARTED_BYTES, MAX_PAYLOAD_BYTES, Hidden, decode

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.peer.wire import Message, Part

MAX_WHOLE_BYTES = 1024 * 1024  # what is larger goes in parts; a side that is honest begins with them at a quarter


@dataclass(slots=True)
class _Begun:
    """A message of `size` bytes, of which `left` are missing. `kept`: it is not thrown away as it comes."""

    header: bytes
    size: int
    left: int
    kept: bool
    payload: bytearray = field(default_factory=bytearray)  # grows as bytes come: promises take no memory


class Parts:
    """Of one link. `room()`: bytes of a further message that are kept until it is whole; if it has more, nothing of it
    is, since nobody here waits for it."""

    def __init__(self) -> None:
        self.room: Callable[[], int] = lambda: MAX_PARTED_BYTES
        self._begun: dict[int, _Begun] = {}

    @property
    def promised(self) -> int:
        """Bytes of messages that are under way and kept."""
        return sum(begun.size for begun in self._begun.values() if begun.kept)

    @property
    def held(self) -> int:
        """Those that have come."""
        return sum(len(begun.payload) for begun in self._begun.values())

    def expect(self, size: int) -> None:
        """A frame with so large a payload is still coming. Errors: `RemoteProtocolError` if it should be in parts."""
        if size > MAX_WHOLE_BYTES:
            raise RemoteProtocolError(f"a frame of {size} bytes is not sent in parts")

    def add(self, part: Part) -> Message | None:
        """Take a part; the message if it was the last one. Errors: `RemoteProtocolError`."""
        begun = self._begin(part) if part.header else self._begun.get(part.ticket)
        if begun is None:
            raise RemoteProtocolError("a part of a message that was not begun")
        payload = memoryview(part.payload)
        if not part.header and not payload and not part.left:
            del self._begun[part.ticket]
            return None
        if not payload or begun.left != len(payload) + part.left:
            raise RemoteProtocolError("a part does not fit its message")
        begun.left = part.left
        if begun.kept:
            begun.payload += payload
        if begun.left:
            return None
        del self._begun[part.ticket]
        if not begun.kept:
            return None
        message = decode(begun.header, begun.payload)
        if not isinstance(message, Hidden):
            raise RemoteProtocolError(f"a {type(message).__name__} message came in parts")
        return message

    def _begin(self, part: Part) -> _Begun:
        size = len(memoryview(part.payload)) + part.left
        others = sum(begun.size for begun in self._begun.values())
        if part.ticket in self._begun or size > MAX_PAYLOAD_BYTES:
            raise RemoteProtocolError("a message in parts is begun twice or too large")
        if len(self._begun) >= MAX_PARTED or others + size > MAX_PARTED_BYTES:
            raise RemoteProtocolError("too many messages are under way in parts")
        kept = size <= self.room()
        begun = self._begun[part.ticket] = _Begun(part.header if kept else b"", size, size, kept)
        return begun
