"""One peer's signed, expiring record: its wire form and every check on it. Pure: no clock, no network, no swarm state.

Wire form, big-endian: magic 4, namespace 32, public key 32, sequence u64, expiry f64, then length and bytes of model
(u8), revision (u8) and body (u16), then the signature 64 over a domain tag and all that precedes. So a record proves by
itself who made it; a storing node needs no secret and no other record to check it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.dht.errors import RecordError
from shoal.dht.identity import PUBLIC_BYTES, SIGNATURE_BYTES, peer_id_of, public_bytes_of, verify_by

if TYPE_CHECKING:
    from shoal.dht.identity import Identity

MAX_RECORD_BYTES = 2048
MAX_MODEL_BYTES = 200
MAX_REVISION_BYTES = 64
MAX_LIFETIME_S = 300.0
NAMESPACE_BYTES = 32
SIGNED_AS = b"shoal record v1\x00"
MAGIC = b"SHR1"
HEAD = struct.Struct(">4s32s32sQd")
KEY_AT = 36  # in HEAD
SHORT, LONG = struct.Struct(">B"), struct.Struct(">H")


@dataclass(frozen=True)
class Record:
    """What one peer says about itself in one swarm.

    namespace: 32 bytes naming the swarm (`Invite.namespace`). sequence: grows with each record of the peer,
    0 <= s < 2**64. expiry: unix seconds, at most 300 s ahead when opened. body: opaque here; empty means "withdrawn".
    """

    namespace: bytes
    model: str
    revision: str
    peer_id: str
    sequence: int
    expiry: float
    body: bytes


def seal(record: Record, identity: Identity) -> bytes:
    """The signed wire form, at most 2,048 bytes; RecordError if the record does not fit or is not `identity`'s own."""
    if record.peer_id != identity.peer_id:
        raise RecordError("A record can only be signed by the peer that it is about.")
    if (
        len(record.namespace) != NAMESPACE_BYTES
        or not 0 <= record.sequence < 1 << 64
        or not math.isfinite(record.expiry)
    ):
        raise RecordError("The record's namespace, sequence number or expiry is out of range.")
    model, revision = record.model.encode(), record.revision.encode()
    if len(model) > MAX_MODEL_BYTES or len(revision) > MAX_REVISION_BYTES:
        raise RecordError(f"A model's name has at most {MAX_MODEL_BYTES} bytes, its revision {MAX_REVISION_BYTES}.")
    if len(record.body) > MAX_RECORD_BYTES:
        raise RecordError(f"The record's body of {len(record.body)} bytes is too long.")
    head = HEAD.pack(MAGIC, record.namespace, public_bytes_of(record.peer_id), record.sequence, record.expiry)
    parts = (
        head,
        SHORT.pack(len(model)),
        model,
        SHORT.pack(len(revision)),
        revision,
        LONG.pack(len(record.body)),
        record.body,
    )
    content = b"".join(parts)
    raw = content + identity.sign(SIGNED_AS + content)
    if len(raw) > MAX_RECORD_BYTES:
        raise RecordError(f"The record has {len(raw)} bytes; at most {MAX_RECORD_BYTES} are allowed.")
    return raw


def open_record(raw: bytes, now: float) -> Record:
    """Check size, form, lifetime and signature of a wire-form record; RecordError names the first thing wrong.

    Accepts only `now < expiry <= now + 300` (unix seconds), so neither an old record nor an immortal one is believed.
    """
    record = parse(raw)
    check(record, raw, now)
    return record


def check(record: Record, raw: bytes, now: float) -> None:
    """What `open_record` does once a record is parsed."""
    if not record.expiry > now:
        raise RecordError("The record has expired.")
    if not record.expiry <= now + MAX_LIFETIME_S:  # also refuses inf; a NaN fails the line above
        raise RecordError(f"The record expires more than {MAX_LIFETIME_S:.0f} s from now.")
    if not verify_by(public_key_in(raw), raw[-SIGNATURE_BYTES:], SIGNED_AS + raw[:-SIGNATURE_BYTES]):
        raise RecordError("The record's signature is not its peer's.")


def parse(raw: bytes) -> Record:
    """Read the wire form without believing it: neither signature nor lifetime is checked. RecordError if malformed."""
    if not HEAD.size + SIGNATURE_BYTES < len(raw) <= MAX_RECORD_BYTES:
        raise RecordError(f"A record of {len(raw)} bytes is too short or too long.")
    magic, namespace, public_key, sequence, expiry = HEAD.unpack_from(raw)
    if magic != MAGIC:
        raise RecordError("This is not a record.")
    end = len(raw) - SIGNATURE_BYTES
    model, at = _field(raw, HEAD.size, end, SHORT)
    revision, at = _field(raw, at, end, SHORT)
    body, at = _field(raw, at, end, LONG)
    if at != end or len(model) > MAX_MODEL_BYTES or len(revision) > MAX_REVISION_BYTES:
        raise RecordError("The record's lengths do not add up.")
    try:
        return Record(namespace, model.decode(), revision.decode(), peer_id_of(public_key), sequence, expiry, body)
    except UnicodeDecodeError as error:
        raise RecordError("The record's model or revision is not text.") from error


def public_key_in(raw: bytes) -> bytes:
    """Whose a wire-form record claims to be; neither form nor signature is checked."""
    return raw[KEY_AT : KEY_AT + PUBLIC_BYTES]


def _field(raw: bytes, at: int, end: int, length: struct.Struct) -> tuple[bytes, int]:
    start = at + length.size
    if start > end:
        raise RecordError("The record is cut short.")
    stop = start + int(length.unpack_from(raw, at)[0])
    if stop > end:
        raise RecordError("The record is cut short.")
    return raw[start:stop], stop
