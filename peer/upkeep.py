"""What every message is, and the messages by which a link keeps itself; knows no sockets, no tensors, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from shoal.peer.fields import WireError, blob, integer, test_of, text

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_HEADER_BYTES = 48 * 1024  # an Open with all its prefix keys takes 36 KiB and its other fields up to 9
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
MAX_PARTED = 16  # messages of one link that are under way in parts at once,
MAX_PARTED_BYTES = 2 * MAX_PAYLOAD_BYTES  # and their bytes

Buffer: TypeAlias = bytes | bytearray | memoryview


class _Tests(dict[type, "Callable[[Message], str]"]):
    """The tests of each kind's fields, by kind."""

    def __missing__(self, kind: type) -> Callable[[Message], str]:
        found = self[kind] = test_of(kind)
        return found


_TESTS = _Tests()


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all messages: checks each field when made. Errors: `WireError`."""

    kind: ClassVar[int]

    def __post_init__(self) -> None:
        if wrong := _TESTS[type(self)](self):
            raise WireError(f"{type(self).__name__}.{wrong} is out of bounds")


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
