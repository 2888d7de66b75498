"""Opens one swarm's sealed records: checks, decrypts and reads them, a few at a time. Knows no network.

A signature takes a quarter of a millisecond to check, and strangers may send thousands of records: in between, whatever
else runs here has its turn, and a look-up opens what has come while it waits for more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from shoal.dht.envelope import Envelope
from shoal.dht.errors import InviteError, RecordError
from shoal.dht.record import Record, check, parse, public_key_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from shoal.dht.invite import Invite

logger = logging.getLogger(__name__)

SLICE_S = 0.0005  # an answer passes some eight rounds of the loop
PAUSE_S = 0.001  # between them while nobody waits for the last one


class Opened(NamedTuple):
    """A verified record of this swarm as it came, opened, and what its envelope said; a withdrawn one has none."""

    raw: bytes
    record: Record
    envelope: Envelope | None


class Opener:
    """Of the records of `invite`'s swarm."""

    def __init__(self, invite: Invite) -> None:
        self._invite = invite

    @property
    def label(self) -> str:
        """The model's name as records show it: a private swarm's show none."""
        return self._invite.model if self._invite.secret is None else ""

    def context(self, peer_id: str) -> bytes:
        """What a body is encrypted for."""
        return self._invite.namespace + peer_id.encode()

    def open(self, raw: bytes, now: float) -> Opened | None:
        """None for anything that is not a good record of this swarm at `now`, in unix seconds."""
        try:
            record = parse(raw)
            if record.namespace != self._invite.namespace or record.model != self.label:
                return None
            check(record, raw, now)
            if not record.body:
                return Opened(raw, record, None)
            envelope = Envelope.decode(self._invite.decrypt(record.body, self.context(record.peer_id)))
        except (RecordError, InviteError) as refusal:
            logger.debug("skipped a record: %s", refusal)
            return None
        return Opened(raw, replace(record, revision=envelope.revision, body=envelope.body), envelope)


class Backlog:
    """Sealed records that wait for `open_one`. `likely` gives public keys whose records come before others', one each:
    anybody may send thousands under whatever key."""

    def __init__(self, open_one: Callable[[bytes], None], likely: Callable[[], Iterable[bytes]]) -> None:
        self._open_one, self._likely = open_one, likely
        self._waiting: dict[bytes, list[bytes]] = {}  # by public key
        self._favoured: set[bytes] = set()
        self._work: asyncio.Task[None] | None = None
        self._hurried = 0

    def __iter__(self) -> Iterator[bytes]:
        return (raw for raws in self._waiting.values() for raw in raws)

    def add(self, raws: Iterable[bytes]) -> None:
        """Open these, too, as soon as others leave time."""
        for raw in raws:
            self._waiting.setdefault(public_key_in(raw), []).append(raw)
        if self._waiting and self._work is None:
            self._favoured.clear()
            self._work = asyncio.create_task(self._open_all())

    async def wait(self, within_s: float | None = None, *, hurried: bool = True) -> None:
        """Until all are open, or so many seconds have passed: the others are opened later, with pauses."""
        if (work := self._work) is None:
            return
        self._hurried += hurried
        try:
            await asyncio.wait({work}, timeout=within_s)
        finally:
            self._hurried -= hurried
        if work.done():
            self._work = None if self._work is work else self._work
            if not work.cancelled():
                work.result()  # an error in it is ours to tell

    def close(self) -> None:
        """Open no more."""
        self._waiting.clear()
        if self._work is not None:
            self._work.cancel()

    async def _open_all(self) -> None:
        while self._waiting:
            end = time.monotonic() + SLICE_S
            first = [key for key in self._likely() if key in self._waiting and key not in self._favoured]
            while self._waiting and time.monotonic() < end:
                key = first.pop() if first else next(iter(self._waiting))
                self._favoured.add(key)
                self._open_of(key)
            await asyncio.sleep(0 if self._hurried else PAUSE_S)
        self._work = None

    def _open_of(self, key: bytes) -> None:
        """One of a key's records; the others come after all other keys' next."""
        raws = self._waiting.pop(key)
        raw = raws.pop()
        if raws:
            self._waiting[key] = raws
        self._open_one(raw)
