"""Owns the swarm as one node sees it: an immutable snapshot folded from announcements. Knows no network, no costs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from shoal.routing.announcement import AnnouncementError, decode
from shoal.routing.columns import Columns, columns_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shoal.dht.record import Record
    from shoal.routing.announcement import Announcement


@dataclass(frozen=True)
class View:
    """The peers of a model of `n_blocks` blocks, as known at `at` (seconds since the epoch), sorted by peer id.

    A block counts as held when an *online* peer that had not expired at `at` announces it. `former`: columns of much
    the same peers, to make these from.
    """

    n_blocks: int
    peers: tuple[Announcement, ...] = ()
    at: float = 0.0
    former: Columns | None = field(default=None, repr=False, compare=False)

    @cached_property
    def by_id(self) -> dict[str, Announcement]:
        """The same peers by their id, made once per view."""
        return {peer.peer_id: peer for peer in self.peers}

    @cached_property
    def columns(self) -> Columns:
        """The same peers as arrays, made once per view: what planning over thousands of peers reads."""
        return columns_of(self.peers, self.former)

    def with_peers(self, peers: Iterable[Announcement]) -> View:
        """Return the view as it would be with these peers instead, most of them the same."""
        return View(self.n_blocks, tuple(peers), self.at, self.__dict__.get("columns", self.former))

    def holders(self, block: int) -> tuple[Announcement, ...]:
        """Return the online peers that hold `block`."""
        return tuple(peer for peer in self.peers if self._is_online(peer) and peer.start <= block < peer.stop)

    def coverage(self) -> list[int]:
        """Return the number of online holders of every block."""
        change = [0] * (self.n_blocks + 1)
        for peer in self.peers:
            if self._is_online(peer):
                change[min(peer.start, self.n_blocks)] += 1
                change[min(peer.stop, self.n_blocks)] -= 1
        held, total = [], 0
        for step in change[: self.n_blocks]:
            total += step
            held.append(total)
        return held

    def missing(self) -> list[int]:
        """Return the blocks without an online holder."""
        return [block for block, count in enumerate(self.coverage()) if count == 0]

    def without(self, peer_id: str) -> View:
        """Return the view as it would be if `peer_id` were not there."""
        return self.with_peers(peer for peer in self.peers if peer.peer_id != peer_id)

    def _is_online(self, peer: Announcement) -> bool:
        return peer.state == "online" and peer.expiry > self.at


def fold(view: View, announcements: Iterable[Announcement], now: float) -> View:
    """Return `view` brought up to `now`: highest sequence per peer, the expired and those outside the model left out.

    The order of the announcements does not matter, and folding the same ones again changes nothing.
    """
    newest: dict[str, Announcement] = {}
    for peer in (*view.peers, *announcements):
        if _rank(peer) > _rank(newest.get(peer.peer_id)):
            newest[peer.peer_id] = peer
    kept = (peer for peer in newest.values() if peer.expiry > now and 0 <= peer.start < peer.stop <= view.n_blocks)
    return replace(view.with_peers(sorted(kept, key=lambda peer: peer.peer_id)), at=now)


def fold_records(view: View, records: Iterable[Record], now: float) -> View:
    """Return `fold` of what verified `records` announce: an empty one withdraws, one that is none is skipped."""
    announcements: list[Announcement] = []
    withdrawn: dict[str, int] = {}
    for record in records:
        if not record.body:
            withdrawn[record.peer_id] = max(record.sequence, withdrawn.get(record.peer_id, 0))
            continue
        try:
            announcements.append(decode(record, view.n_blocks))
        except AnnouncementError:
            continue
    known = (*view.peers, *announcements)
    return fold(view.with_peers(()), (p for p in known if p.sequence > withdrawn.get(p.peer_id, -1)), now)


def _rank(peer: Announcement | None) -> tuple[int, float]:
    return (-1, 0.0) if peer is None else (peer.sequence, peer.expiry)
