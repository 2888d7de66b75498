"""The records that one node keeps for others: what it takes, how much, for how long. Pure: told the time, no network.

Each record is checked by itself, so a bad one never hides the good ones beside it, and each lies under the one key that
its own content gives. Per peer only the highest sequence number is kept, so nobody can replay an older record over it.
Where there is no more room, a peer's own offer takes the place of one that somebody else brought: who would fill the
store with peers that do not exist needs a live connection for each. Else it takes the place of the newest of the
network that has most places: who has many identities and one address keeps few others out. However much is kept, a put
takes about the same work.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, OrderedDict
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

from shoal.dht.crowds import Crowds
from shoal.dht.errors import RecordError
from shoal.dht.keys import record_key
from shoal.dht.record import open_record

if TYPE_CHECKING:
    from collections.abc import Container

    from shoal.dht.record import Record

MAX_RECORDS_PER_KEY = 512
MAX_RECORDS = 32_768  # 64 MiB at most
SWEEP_EVERY_S = 10.0
FEW = 8  # enough of each key to begin with
DIGEST_BYTES = 8  # too many for anybody to make a record that passes for another's


class Kept(NamedTuple):
    """One stored record: its wire form, its digest, and what decides about it. by_owner: its peer was here itself, from
    `network`: "" if that is not known, None if it does not count."""

    raw: bytes
    digest: bytes
    sequence: int
    expiry: float
    by_owner: bool
    network: str | None


def digest_of(raw: bytes) -> bytes:
    """By which nodes tell one another which records they hold."""
    return hashlib.sha256(b"shoal digest v1" + raw).digest()[:DIGEST_BYTES]


class RecordStore:
    """Records by key and peer id."""

    def __init__(self) -> None:
        self._shelves: dict[bytes, dict[str, Kept]] = {}
        self._brought: OrderedDict[tuple[bytes, str], None] = OrderedDict()  # not by their owners; the oldest first
        self._crowds: Crowds[tuple[bytes, str]] = Crowds()  # of owners
        self._expiries: list[tuple[float, bytes, str]] = []  # a heap; of records that were renewed or evicted, too
        self._count = 0
        self._swept_at = float("-inf")

    def put(
        self,
        key: bytes,
        peer_id: str,
        raw: bytes,
        now: float,
        *,
        by_owner: bool = False,
        network: str | None = None,
    ) -> Record:
        """Store a record offered under `key` as `peer_id`'s; RecordError says why it is refused. Repeats are fine.
        by_owner: that peer itself offers it, from a network that is named as in `Kept`."""
        record = open_record(raw, now)
        if record.peer_id != peer_id or record_key(record.namespace, record.peer_id) != key:
            raise RecordError("The record was offered under a key or peer id that is not its own.")
        self._sweep(now)
        shelf = self._shelves.get(key, {})
        kept = shelf.get(peer_id)
        if kept is None and not self._has_room(shelf) and not (by_owner and self._make_room(key, shelf, network)):
            raise RecordError("There is no room for more peers under this key.")
        if kept is not None and kept.sequence >= record.sequence and kept.raw != raw:
            raise RecordError("The record is older than the one stored.")
        self._count += kept is None
        if kept is not None and kept.by_owner:
            network = kept.network if not by_owner or network == "" else network
            by_owner = True
        network = network if by_owner else None
        self._note_network(key, peer_id, kept, network)
        shelf[peer_id] = Kept(raw, digest_of(raw), record.sequence, record.expiry, by_owner, network)
        self._shelves[key] = shelf
        if by_owner:
            self._brought.pop((key, peer_id), None)
        else:
            self._brought.setdefault((key, peer_id))
        self._note_expiry(record.expiry, key, peer_id)
        return record

    def get(self, key: bytes, now: float) -> list[bytes]:
        """Wire forms of the live records under a key, at most 512."""
        return [kept.raw for kept in self._shelves.get(key, {}).values() if kept.expiry > now]

    def digests(self, key: bytes, now: float) -> list[bytes]:
        """Those of what `get` gives."""
        return [kept.digest for kept in self._shelves.get(key, {}).values() if kept.expiry > now]

    def some(self, key: bytes, digests: frozenset[bytes], now: float) -> list[bytes]:
        """Those of what `get` gives that have such digests."""
        shelf = self._shelves.get(key, {}).values()
        return [kept.raw for kept in shelf if kept.digest in digests and kept.expiry > now]

    def few(self, key: bytes, now: float, known: Container[str]) -> list[bytes]:
        """At most `FEW` of what `get` gives, of peers that surely are there, if so many are: of those that are `known`,
        then those that brought theirs, then any."""
        live = [(peer_id, kept) for peer_id, kept in self._shelves.get(key, {}).items() if kept.expiry > now]
        random.shuffle(live)
        live.sort(key=lambda each: (each[0] not in known, not each[1].by_owner))
        return [kept.raw for _, kept in live[:FEW]]

    def asks_whence(self, key: bytes, peer_id: str) -> bool:
        """Whether it may decide from which network that peer comes, and that is not known."""
        shelf = self._shelves.get(key, {})
        kept = shelf.get(peer_id)
        crowded = len(shelf) >= MAX_RECORDS_PER_KEY // 2 or self._count >= MAX_RECORDS // 2
        return crowded and (kept is None or not kept.by_owner or kept.network == "")

    def __len__(self) -> int:
        return self._count

    def _has_room(self, shelf: dict[str, Kept]) -> bool:
        return len(shelf) < MAX_RECORDS_PER_KEY and self._count < MAX_RECORDS

    def _make_room(self, key: bytes, shelf: dict[str, Kept], network: str | None) -> bool:
        """Forget the oldest record that others brought, of a full shelf or, if the store is, of any; if all are their
        owners', one of the network that has most. False if that is the newcomer's own, or has no more than others."""
        if len(shelf) >= MAX_RECORDS_PER_KEY:
            oldest = next((peer_id for peer_id, kept in shelf.items() if not kept.by_owner), None)
            oldest = oldest or _one_too_many(shelf, network)
            place = (key, oldest) if oldest else None
        else:
            place = next(iter(self._brought), None) or self._crowds.one_too_many(network)
        if place is None:
            return False
        self._forget(*place)
        return True

    def _note_network(self, key: bytes, peer_id: str, kept: Kept | None, network: str | None) -> None:
        if kept is not None and kept.network is not None and kept.network != network:
            self._crowds.remove(kept.network, (key, peer_id))
        if network is not None:
            self._crowds.add(network, (key, peer_id))

    def _sweep(self, now: float) -> None:
        """Forget what has expired. Every 10 s, or at once when full."""
        if now < self._swept_at + SWEEP_EVERY_S and self._count < MAX_RECORDS:
            return
        self._swept_at = now
        while self._expiries and self._expiries[0][0] <= now:
            _, key, peer_id = heappop(self._expiries)
            kept = self._shelves.get(key, {}).get(peer_id)
            if kept is not None and kept.expiry <= now:  # else it was renewed
                self._forget(key, peer_id)

    def _note_expiry(self, expiry: float, key: bytes, peer_id: str) -> None:
        """As the heap grows with every renewal, it is made anew once most of it is of the past."""
        heappush(self._expiries, (expiry, key, peer_id))
        if len(self._expiries) > 2 * self._count:
            self._expiries = [
                (kept.expiry, key, peer_id) for key, shelf in self._shelves.items() for peer_id, kept in shelf.items()
            ]
            heapify(self._expiries)

    def _forget(self, key: bytes, peer_id: str) -> None:
        shelf = self._shelves[key]
        self._note_network(key, peer_id, shelf.pop(peer_id), None)
        if not shelf:
            del self._shelves[key]
        self._brought.pop((key, peer_id), None)
        self._count -= 1


def _one_too_many(shelf: dict[str, Kept], network: str | None) -> str | None:
    """As `Crowds.one_too_many`, of a shelf."""
    sizes = Counter(kept.network for kept in shelf.values() if kept.network is not None)
    for largest, most in sizes.most_common(1):
        if most > (0 if network is None else sizes[network]) + 1:
            return next(peer_id for peer_id in reversed(shelf) if shelf[peer_id].network == largest)
    return None
