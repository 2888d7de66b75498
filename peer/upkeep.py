"""What every message is, and the messages by which a link keeps itself; knows no sockets, no tensors, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeAlias

from shoal.peer.fields import WireError, blob, integer, text

MAX_HEADER_BYTES = 48 * 1024  # an Open with all its prefix keys takes 36 KiB and its other fields up to 9
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
MAX_PARTED = 16  # messages of one link that are under way in parts at once,
MAX_PARTED_BYTES = 2 * MAX_PAYLOAD_BYTES  # and their bytes

Buffer: TypeAlias = bytes | bytearray | memoryview


class _Checks(dict[type, tuple[tuple[str, Any], ...]]):
    """The checks of each kind's fields, by kind."""

    def __missing__(self, kind: type) -> tuple[tuple[str, Any], ...]:
        found = self[kind] = tuple((f.name, f.metadata["check"]) for f in fields(kind) if "check" in f.metadata)
        return found


_CHECKS = _Checks()


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all messages: checks each field when made. Errors: `WireError`."""

    kind: ClassVar[int]

    def __post_init__(self) -> None:
        for name, check in _CHECKS[type(self)]:
            if not check(getattr(self, name)):
                raise WireError(f"{type(self).__name__}.{name} is out of bounds")


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """First frame on every link, from both sides."""

    kind = 0
    version: int = integer(1 << 16)
    agent: str = text(64)


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Is anybody there? Answered at once with the same nonce."""

    kind = 8
    nonce: int = integer(1 << 63)


@dataclass(frozen=True, slots=True)
class Pong(Message):
    """Answer to `Ping`."""

    kind = 9
    nonce: int = integer(1 << 63)


@dataclass(frozen=True, slots=True)
class Part(Message):
    """A piece of a `Hidden` that is too large to go at once: others' messages go between its parts.

    The first one bears the message's `header`; `left` counts the bytes of its payload that are still to come. One
    without header and payload says that the rest will never come.
    """

    kind = 11
    ticket: int = integer(1 << 32)
    left: int = integer(MAX_PAYLOAD_BYTES + 1)
    header: bytes = blob(MAX_HEADER_BYTES - 64)
    payload: Buffer = field(default=b"", repr=False, metadata={"payload": True})


@dataclass(frozen=True, slots=True)
class Mark(Message):
    """Goes out between a link's bytes: has all before it come? Answered at once."""

    kind = 12
    number: int = integer(1 << 63)


@dataclass(frozen=True, slots=True)
class Marked(Message):
    """Answer to `Mark`: it came `at_us` microseconds by the answering side's clock."""

    kind = 13
    number: int = integer(1 << 63)
    at_us: int = integer(1 << 63)
