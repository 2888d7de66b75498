"""Puts messages together that come in parts, within bounds. Pure: bytes in, messages out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shoal.peer.errors import RemoteProtocolError
from shoal.peer.wire import MAX_PARTED, MAX_PARTED_BYTES, MAX_PAYLOAD_BYTES, Hidden, decode

if TYPE_CHECKING:
    from shoal.peer.wire import Message, Part


@dataclass(slots=True)
class _Begun:
    """A message of which `left` bytes are missing."""

    header: bytes
    left: int
    payload: bytearray = field(default_factory=bytearray)  # grows as bytes come: promises take no memory

    @property
    def size(self) -> int:
        return len(self.payload) + self.left


class Parts:
    """Of one link."""

    def __init__(self) -> None:
        self._begun: dict[int, _Begun] = {}

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
        begun.payload += payload
        begun.left = part.left
        if begun.left:
            return None
        del self._begun[part.ticket]
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
        begun = self._begun[part.ticket] = _Begun(part.header, size)
        return begun
