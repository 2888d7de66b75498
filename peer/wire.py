"""The messages peers and clients exchange, and their bytes; knows no sockets, no tensors, no clock.

A frame is two big-endian u32 (header length, payload length), a msgpack header `[kind, *fields]` and the payload: the
tensor's own buffer, never copied into the header. Every message checks itself when it is made, so that encoding refuses
what decoding would refuse.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field, fields
from enum import IntEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgpack
from shoal.blocks.formats import FORMS, row_bytes
from shoal.peer.errors import LocalProtocolError, Reason, RemoteProtocolError
from shoal.peer.fields import WireError, addrs, flag, integer, keys, one_of, raw, seconds, text
from shoal.peer.upkeep import (
    MAX_HEADER_BYTES,
    MAX_PARTED,
    MAX_PARTED_BYTES,
    MAX_PAYLOAD_BYTES,
    Buffer,
    Hello,
    Mark,
    Marked,
    Message,
    Part,
    Ping,
    Pong,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "MAX_HEADER_BYTES", "MAX_PARTED", "MAX_PARTED_BYTES", "MAX_PAYLOAD_BYTES", "PREFIX", "PREFIX_TOKENS", "VERSION",
    "Buffer", "Close", "Hello", "Hidden", "Leaving", "Mark", "Marked", "Message", "Open", "Opened", "Part", "Ping",
    "Pong", "Receipt", "Refused", "Reroute", "Want", "decode", "decode_prefix", "encode", "size_of",
]  # fmt: skip

VERSION = 4
PREFIX = struct.Struct(">II")
SESSION_BYTES = 16
MAX_COUNT = 1 << 20
PREFIX_TOKENS = 64
KEY_BYTES = 16
MAX_KEYS = 2048


class Want(IntEnum):
    """Which hidden states of a step the client asks back."""

    NONE = 0
    LAST = 1
    ALL = 2


def session_name(client_id: str, chance: bytes) -> bytes:
    """A session's 16 bytes: 8 bytes of `chance`, and a digest of these with the one peer that may open it. Others on
    its route learn the name; they cannot take it before its client does."""
    digest = hashlib.blake2b(chance + client_id.encode(), digest_size=SESSION_BYTES // 2, person=b"shoal session")
    return chance + digest.digest()


def names_session_of(client_id: str, session: bytes) -> bool:
    """Whether `session_name` gives such a name to that client."""
    return session == session_name(client_id, session[: SESSION_BYTES // 2])


def _session() -> Any:
    return raw(SESSION_BYTES)


def _reason() -> Any:
    return one_of(frozenset(Reason), Reason)


def _want() -> Any:
    return one_of(frozenset(Want), Want)


def _dtype() -> Any:
    return one_of(frozenset(FORMS))


@dataclass(frozen=True, slots=True)
class Open(Message):
    """Client asks a hop for a lease on blocks `[start, stop)` for `max_tokens` positions.

    `prev` and `next` are peer ids, or "" for the client itself. `next_step` is the first step the lease will be asked.
    `final` marks the route's last hop: it alone cuts its output down to what the client wants.
    `forward_replay`: pass replayed states on (the next hop is new as well). `priority`: 1 waits behind 0.
    `prefix`: one key for every `PREFIX_TOKENS` tokens of the prompt, in order; a key stands for all tokens up to its
    end and for the hops before this one, so that equal keys of one owner mean equal KV.
    """

    kind = 1
    session: bytes = _session()
    epoch: int = integer(1 << 31)
    namespace: bytes = raw(32)
    revision: str = text(64)
    start: int = integer(1 << 16)
    stop: int = integer(1 << 16)
    max_tokens: int = integer(MAX_COUNT + 1)
    next_step: int = integer(1 << 31)
    dtype: str = _dtype()
    prev: str = text(128)
    next: str = text(128)
    next_addrs: tuple[str, ...] = addrs()
    final: bool = flag()
    forward_replay: bool = flag()
    proof: bytes = raw(0, 32)
    priority: int = integer(2, default=0)
    prefix: tuple[bytes, ...] = keys(KEY_BYTES, MAX_KEYS)

    def __post_init__(self) -> None:
        super(Open, self).__post_init__()
        if self.start >= self.stop or not self.max_tokens:
            raise WireError("Open asks for no blocks or no tokens")


@dataclass(frozen=True, slots=True)
class Opened(Message):
    """The lease stands (answer to `Open` and to `Reroute`); `cached` tokens of its prefix are in the KV already."""

    kind = 2
    session: bytes = _session()
    epoch: int = integer(1 << 31)
    cached: int = integer(MAX_COUNT + 1, default=0)


@dataclass(frozen=True, slots=True)
class Refused(Message):
    """A hop cannot go on with a session, and why; `retry_s` > 0 is a hint when to come back."""

    kind = 3
    session: bytes = _session()
    epoch: int = integer(1 << 31)
    reason: Reason = _reason()
    text: str = text(512)
    retry_s: float = seconds()


@dataclass(frozen=True, slots=True)
class Hidden(Message):
    """Hidden states of positions `[position, position + count)`: one step's input to a hop or answer to the client.

    `payload`: `rows` of `width` numbers in the form `dtype` (see `blocks.formats`); an answer to `Want.LAST` has one.
    `replay` marks kept states that refill a new hop's KV: they have no step of their own and are never answered.
    `length`: tokens that the sequence has once its prompt is in (0: position + count), for rotary embeddings that
    depend on it.
    """

    kind = 4
    session: bytes = _session()
    epoch: int = integer(1 << 31)
    step: int = integer(1 << 31)
    position: int = integer(MAX_COUNT)
    count: int = integer(MAX_COUNT)
    want: Want = _want()
    replay: bool = flag()
    rows: int = integer(MAX_COUNT)
    width: int = integer(1 << 17)
    dtype: str = _dtype()
    length: int = integer(MAX_COUNT + 1, default=0)
    payload: Buffer = field(default=b"", repr=False, metadata={"payload": True})

    def __post_init__(self) -> None:
        super(Hidden, self).__post_init__()
        if not self.count or self.rows > self.count:
            raise WireError("Hidden carries no tokens, or more rows than tokens")
        if self.rows * row_bytes(self.dtype, self.width) != memoryview(self.payload).nbytes:
            raise WireError("Hidden's payload has not the declared shape")


@dataclass(frozen=True, slots=True)
class Receipt(Message):
    """A hop has run a step: how long it waited and how long it computed."""

    kind = 5
    session: bytes = _session()
    epoch: int = integer(1 << 31)
    step: int = integer(1 << 31)
    queue_s: float = seconds()
    compute_s: float = seconds()


@dataclass(frozen=True, slots=True)
class Reroute(Message):
    """Client tells a surviving hop its new neighbours. With `replay_to` > 0 it sends its kept outputs
    `[0, replay_to)` to the new next hop before anything else."""

    kind = 6
    session: bytes = _session()
    epoch: int = integer(1 << 31)
    prev: str = text(128)
    next: str = text(128)
    next_addrs: tuple[str, ...] = addrs()
    replay_to: int = integer(MAX_COUNT + 1)


@dataclass(frozen=True, slots=True)
class Close(Message):
    """Client ends a lease (not one that was opened under a later epoch).

    `prefix`: keys as in `Open`, of all tokens that the lease has run, answers too: whoever goes on with them finds
    their KV. None where it may not be used again.
    """

    kind = 7
    session: bytes = _session()
    epoch: int = integer(1 << 31)
    prefix: tuple[bytes, ...] = keys(KEY_BYTES, MAX_KEYS)


@dataclass(frozen=True, slots=True)
class Leaving(Message):
    """A peer tells a lease's owner that it wants to go; until the lease is closed or its patience ends it serves on."""

    kind = 10
    session: bytes = _session()
    epoch: int = integer(1 << 31)


_KINDS: dict[int, type[Message]] = {
    kind.kind: kind
    for kind in (
        Hello, Open, Opened, Refused, Hidden, Receipt, Reroute, Close, Ping, Pong, Leaving, Part, Mark, Marked,
    )
}  # fmt: skip
_NAMES = {kind: tuple(f.name for f in fields(kind) if "payload" not in f.metadata) for kind in _KINDS.values()}
_HEADS = {kind: attrgetter("kind", *names) for kind, names in _NAMES.items()}
_MAKERS = {  # of the fields that are not as msgpack gives them
    kind: tuple((at, f.metadata["make"]) for at, f in enumerate(fields(kind)) if "make" in f.metadata)
    for kind in _KINDS.values()
}
_WITH_PAYLOAD = frozenset({Hidden, Part})


def encode(message: Message) -> tuple[Buffer, ...]:
    """Bytes of one frame: the prefix with the header, then the payload's own buffer if there is one.

    Errors: `LocalProtocolError` if the frame is larger than a receiver would take.
    """
    header = msgpack.packb(_HEADS[type(message)](message))
    payload = message.payload if isinstance(message, Hidden | Part) else b""
    size = memoryview(payload).nbytes
    if len(header) > MAX_HEADER_BYTES or size > MAX_PAYLOAD_BYTES:
        raise LocalProtocolError(
            f"{type(message).__name__} of {len(header)}+{size} bytes is larger than a frame may be"
        )
    head = PREFIX.pack(len(header), size) + header
    return (head, payload) if size else (head,)


def size_of(buffers: Iterable[Buffer]) -> int:
    """Bytes of them in all."""
    size = 0
    for buffer in buffers:
        size += buffer.nbytes if type(buffer) is memoryview else len(buffer)
    return size


def decode_prefix(prefix: Buffer) -> tuple[int, int]:
    """Header and payload length of the next frame. Errors: `RemoteProtocolError` past the limits."""
    header, payload = PREFIX.unpack(prefix)
    if not 0 < header <= MAX_HEADER_BYTES or payload > MAX_PAYLOAD_BYTES:
        raise RemoteProtocolError(f"a frame of {header}+{payload} bytes is out of bounds")
    return header, payload


def decode(header: Buffer, payload: Buffer) -> Message:
    """One message from its header and payload. Errors: `RemoteProtocolError`."""
    try:
        parts = msgpack.unpackb(header, max_ext_len=0, max_map_len=0, max_array_len=MAX_KEYS)
    except ValueError as error:
        raise RemoteProtocolError("a frame's header is not msgpack") from error
    kind = _KINDS.get(parts[0]) if type(parts) is list and parts and type(parts[0]) is int else None
    if kind is None or len(parts) != len(_NAMES[kind]) + 1 or (payload and kind not in _WITH_PAYLOAD):
        raise RemoteProtocolError("a frame's header is no message of this version")
    return _build(kind, parts[1:], payload)


def _build(kind: type[Message], values: list[Any], payload: Buffer) -> Message:
    try:
        for at, make in _MAKERS[kind]:
            values[at] = make(values[at])
        return kind(*values, *([payload] if kind in _WITH_PAYLOAD else []))
    except (WireError, ValueError, TypeError) as error:
        raise RemoteProtocolError(f"a {kind.__name__} message is malformed: {error}") from error
