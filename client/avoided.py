"""Peers that a session keeps away from because they failed it. Names only: no clock, no messages."""

from __future__ import annotations


class Avoided:
    """`peers` failed and are not to be asked. All may be forgiven together; `chances` tells whether one of them has
    not been asked a second time since the last answer."""

    def __init__(self) -> None:
        self.peers: set[str] = set()
        self._forgiven: set[str] = set()
        self._doubted: set[str] = set()

    @property
    def chances(self) -> bool:
        """Whether forgiving gives somebody a second chance."""
        return not self.peers <= self._forgiven

    def failed(self, peer_id: str) -> None:
        """Keep away from a peer."""
        self.peers.add(peer_id)

    def doubted(self, peer_id: str) -> bool:
        """Whether this is not the first time since the last answer that a peer says it lacks what it was given."""
        before = peer_id in self._doubted
        self._doubted.add(peer_id)
        return before

    def forgive(self) -> None:
        """All may be asked again."""
        self._forgiven |= self.peers
        self.peers.clear()

    def answered(self) -> None:
        """The session got on: chances count anew."""
        self._forgiven.clear()
        self._doubted.clear()
