"""What questions and answers about records look like inside hivemind's messages. Bytes in, bytes out; knows no network.

Nothing of it is msgpack: a stranger's bytes are cut at lengths, and refused where those do not add up.
"""

from __future__ import annotations

import random
import struct

from shoal.dht.keys import KEY_BYTES
from shoal.dht.record import MAX_RECORD_BYTES
from shoal.dht.store import DIGEST_BYTES, MAX_RECORDS_PER_KEY

LENGTH = struct.Struct(">H")
DIGESTS, SOME, FEW = b"d", b"s", b"f"  # after a key: what is wanted of its records, if not all of them


def pack(records: list[bytes], budget_bytes: int) -> bytes:
    """Length-prefixed records; a random choice if they exceed the budget, so that repeated questions see all."""
    if sum(map(len, records)) + LENGTH.size * len(records) > budget_bytes:
        fitting = budget_bytes // (MAX_RECORD_BYTES + LENGTH.size)
        records = random.sample(records, min(fitting, len(records)))
    return b"".join(LENGTH.pack(len(record)) + record for record in records)


def unpack(packed: bytes) -> list[bytes]:
    """Inverse of `pack`: at most 512 records; ValueError if the lengths do not add up."""
    records: list[bytes] = []
    at = 0
    while at < len(packed):
        start = at + LENGTH.size
        if start > len(packed) or len(records) == MAX_RECORDS_PER_KEY:
            raise ValueError("too many records or a broken length")
        at = start + LENGTH.unpack_from(packed, start - LENGTH.size)[0]
        records.append(packed[start:at])
    if at != len(packed):
        raise ValueError("a record is cut short")
    return records


def is_asked(wanted: tuple[bytes, bytes, bytes]) -> bool:
    """Whether that is a key, what of its records is wanted, and as many whole digests as there may be."""
    key, what, digests = wanted
    if len(key) != KEY_BYTES or what not in {b"", DIGESTS, SOME, FEW} or (digests and what != SOME):
        return False
    return len(digests) % DIGEST_BYTES == 0 and len(digests) <= MAX_RECORDS_PER_KEY * DIGEST_BYTES


def some_of(key: bytes, digests: frozenset[bytes]) -> bytes:
    """Asks for the records under a key that have these digests."""
    return key + SOME + b"".join(digests)


def cut(digests: bytes) -> list[bytes]:
    """One after the other."""
    return [digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)]


def digests_in(value: bytes) -> frozenset[bytes]:
    """At most 512; ValueError if one is cut short."""
    if len(value) % DIGEST_BYTES or len(value) > MAX_RECORDS_PER_KEY * DIGEST_BYTES:
        raise ValueError("too many digests or one that is cut short")
    return frozenset(cut(value))
