"""What a client sees of its swarm: the latest view, made from the directory's records. No network, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.routing.announcement import AnnouncementError, decode
from shoal.routing.view import View, fold

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shoal.client.options import Model
    from shoal.dht.record import Record

WAIT = "wait for one (--wait 60) or start one."


class Lookout:
    """view: the latest snapshot of the swarm. other_revisions: peers that serve another revision of the model, which is
    why they are not in the view."""

    def __init__(self, model: Model) -> None:
        self.view = View(model.n_blocks)
        self.other_revisions: dict[str, str] = {}
        self._model = model

    def take(self, records: Iterable[Record], now: float) -> View:
        """The view as these records make it at `now`, in unix seconds; peers that have none in them are gone."""
        fresh, self.other_revisions = [], {}
        known = {(peer.peer_id, peer.sequence, peer.expiry): peer for peer in self.view.peers}
        for record in records:
            if record.revision != self._model.revision:
                self.other_revisions[record.peer_id] = record.revision
                continue
            try:
                same = known.get((record.peer_id, record.sequence, record.expiry))
                fresh.append(same or decode(record, self._model.n_blocks))
            except AnnouncementError:
                continue  # one bad record hides no other
        withdrawn = {peer.peer_id for peer in self.view.peers} - {peer.peer_id for peer in fresh}
        old = self.view.with_peers(peer for peer in self.view.peers if peer.peer_id not in withdrawn)
        self.view = fold(old, fresh, now)
        return self.view

    def why_missing(self) -> str:
        """Which blocks have no holder, and what to do."""
        missing, hint = ", ".join(map(str, self.view.missing())), self.revision_hint()
        return f"no peer serves blocks {missing}: {WAIT} {hint}".rstrip()

    def revision_hint(self) -> str:
        """What to say of peers that serve another revision; "" if there are none."""
        return self._model.beside(self.other_revisions)
