"""Which peers are there now, by this client's own links. A record outlives a peer that was killed by up to a minute; a
link does not. Somebody who looks on keeps links to the peers of the view open. Knows no sessions and no routes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shoal.peer.pool import ChannelPool
    from shoal.routing.announcement import Announcement
    from shoal.routing.view import View

Seen = Literal["here", "lost", "unreached", "unknown"]

MAX_WATCHED = 64  # links that are kept open for nobody but an onlooker
ASK_AGAIN_S = 30.0
MOST_MET = 4096


class Presence:
    """Told of every link that opens (`opened`) or ends (`lost`), and of every new view (`refreshed`)."""

    def __init__(self, pool: ChannelPool, clock: Callable[[], float]) -> None:
        self._pool, self._now = pool, clock
        self._open: set[str] = set()
        self._met: set[str] = set()  # have let us in at some time
        self._lost: dict[str, Seen] = {}
        self._tried: dict[str, tuple[int, float]] = {}  # the record's number when a peer was tried last, and when
        self._view: View | None = None
        self._onlookers = 0

    def opened(self, peer_id: str) -> None:
        """The link to a peer stands."""
        self._open.add(peer_id)
        self._met.add(peer_id)
        self._lost.pop(peer_id, None)

    def lost(self, peer_id: str) -> None:
        """The link to a peer ended, or could not be opened; links closed on purpose are not told."""
        self._lost[peer_id] = "lost" if peer_id in self._met else "unreached"
        self._open.discard(peer_id)

    def of(self, peer_id: str) -> Seen:
        """`here`: its link is alive. `lost`: it was here, and is not any more. `unreached`: it never let us in.
        `unknown`: no link, and no reason to think anything."""
        if peer_id in self._lost:
            return self._lost[peer_id]
        return "here" if peer_id in self._open and peer_id in self._pool.peers() else "unknown"

    def gone(self) -> frozenset[str]:
        """Peers whose link died, or could not be opened again."""
        return frozenset(peer_id for peer_id, seen in self._lost.items() if seen == "lost")

    def there(self, view: View) -> View:
        """The view without the peers that are gone."""
        gone = self.gone()
        return view.with_peers(peer for peer in view.peers if peer.peer_id not in gone)

    def refreshed(self, view: View) -> None:
        """Forget peers that are in the view no more; for an onlooker, try those without a link."""
        self._view = view
        names = {peer.peer_id for peer in view.peers}
        # A look-up may miss a peer once: its link stands all the same, and it has let us in before.
        self._open &= set(self._pool.peers())
        if len(self._met) > MOST_MET:
            self._met &= names | self._open
        self._lost = {name: seen for name, seen in self._lost.items() if name in names}
        self._tried = {name: tried for name, tried in self._tried.items() if name in names}
        for peer in view.peers if self._onlookers else ():
            if peer.peer_id in self.watched and peer.peer_id not in self._open and self._is_due(peer):
                self._tried[peer.peer_id] = (peer.sequence, self._now())
                self._pool.connect(peer.peer_id, peer.addrs)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While somebody looks on, links are opened and stay open."""
        self._onlookers += 1
        try:
            if self._view is not None:
                self.refreshed(self._view)
            yield
        finally:
            self._onlookers -= 1

    @property
    def watched(self) -> set[str]:
        """Peers whose links are kept for an onlooker."""
        if self._view is None or not self._onlookers:
            return set()
        return {peer.peer_id for peer in self._view.peers[:MAX_WATCHED]}

    def _is_due(self, peer: Announcement) -> bool:
        """At once if it has announced itself since; one that was killed has not."""
        sequence, at = self._tried.get(peer.peer_id, (-1, 0.0))
        return peer.sequence > sequence or self._now() - at >= ASK_AGAIN_S
