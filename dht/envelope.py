"""What the directory wraps around an announcement's bytes inside a record's body. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.dht.errors import RecordError

RUN_BYTES = 8
MAX_TEXT_BYTES = 64


@dataclass(frozen=True)
class Envelope:
    """run: 8 bytes that differ at each start of a peer. maddr: where that run listens. revision: of its checkpoint."""

    run: bytes
    maddr: str
    revision: str
    body: bytes

    def encode(self) -> bytes:
        """Run, length (1 byte) and text of address and of revision, then the body. Too long an address is left out."""
        maddr, revision = self.maddr.encode(), self.revision.encode()
        if len(revision) > MAX_TEXT_BYTES:
            raise RecordError(f"A revision has at most {MAX_TEXT_BYTES} bytes.")
        if len(maddr) > MAX_TEXT_BYTES:
            maddr = b""
        return self.run + bytes([len(maddr)]) + maddr + bytes([len(revision)]) + revision + self.body

    @classmethod
    def decode(cls, raw: bytes) -> Envelope:
        """Inverse of `encode`; RecordError on anything else, also where a revision could rule a terminal."""
        try:
            maddr_end = RUN_BYTES + 1 + raw[RUN_BYTES]
            revision_end = maddr_end + 1 + raw[maddr_end]
            maddr, revision = raw[RUN_BYTES + 1 : maddr_end].decode(), raw[maddr_end + 1 : revision_end].decode()
        except (IndexError, UnicodeDecodeError) as error:
            raise RecordError("The record's envelope is malformed.") from error
        if revision_end > len(raw) or len(maddr) > MAX_TEXT_BYTES or len(revision) > MAX_TEXT_BYTES:
            raise RecordError("The record's envelope is malformed.")
        if not (revision.isascii() and revision.isprintable()):
            raise RecordError("The record's envelope is malformed.")
        return cls(raw[:RUN_BYTES], maddr, revision, raw[revision_end:])
