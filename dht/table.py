"""The routing table with limits on how much of it one network may fill. Told where a peer is; asks nobody.

At most 2 nodes of one /24 (IPv6: /48) in a bucket and 10 in the table; loopback and private networks are exempt. In
hivemind's own table 2,000 identities of one host took nearly every place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.dht.foreign import DHTID, RoutingTable

if TYPE_CHECKING:
    from shoal.dht.foreign import PeerID

MAX_PER_BUCKET = 2
MAX_PER_TABLE = 10


class LimitedTable(RoutingTable):  # type: ignore[misc]  # hivemind is untyped
    """hivemind's routing table (Kademlia), which refuses crowds. Replacement lists are bounded too."""

    def __init__(self, node_id: DHTID, bucket_size: int, depth_modulo: int) -> None:
        super().__init__(node_id, bucket_size, depth_modulo)
        self._networks: dict[DHTID, str | None] = {}

    def admit(self, node_id: DHTID, peer: PeerID, network: str | None) -> bool:
        """Add a new node that answered from `network` (None: exempt); False if its network has its share."""
        if node_id == self.node_id or not self._has_room(node_id, network):
            return False
        self._networks[node_id] = network
        self.refresh(node_id, peer)
        return True

    def refresh(self, node_id: DHTID, peer: PeerID) -> None:
        """Note that a node has been heard from."""
        self.add_or_update_node(node_id, peer)
        waiting = self.buckets[self.get_bucket_index(node_id)].replacement_nodes
        if len(waiting) > self.bucket_size:
            del self[next(iter(waiting))]

    def __delitem__(self, node_id: DHTID) -> None:
        super().__delitem__(node_id)
        self._networks.pop(node_id, None)

    def peers(self) -> list[PeerID]:
        """Every peer in the table."""
        return list(self.uid_to_peer_id.values())

    def least_recent(self) -> list[PeerID]:
        """Of each bucket the peer not heard from for longest."""
        return [next(iter(bucket.nodes_to_peer_id.values())) for bucket in self.buckets if bucket.nodes_to_peer_id]

    def _has_room(self, node_id: DHTID, network: str | None) -> bool:
        if network is None:
            return True
        bucket = self.buckets[self.get_bucket_index(node_id)]
        neighbours = [other for other, its in self._networks.items() if its == network]
        beside = [other for other in neighbours if bucket.has_in_range(other)]
        return len(neighbours) < MAX_PER_TABLE and len(beside) < MAX_PER_BUCKET
