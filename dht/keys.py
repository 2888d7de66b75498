"""Where things lie: node ids, a swarm's shards, and the network blocks that limits are counted in. Pure."""

from __future__ import annotations

import hashlib
import ipaddress

KEY_BYTES = 20
SHARDS = 8
PREFIX_BITS = {4: 24, 6: 48}


def node_key(peer_id: bytes) -> bytes:
    """A node's place: the hash of its peer id, so that one identity has one place and cannot choose it (S/Kademlia)."""
    return hashlib.sha256(b"shoal node v1" + peer_id).digest()[:KEY_BYTES]


def shard_key(namespace: bytes, shard: int) -> bytes:
    """The key of one of a swarm's 8 shards."""
    return hashlib.sha256(b"shoal shard v1" + namespace + bytes([shard])).digest()[:KEY_BYTES]


def shard_of(peer_id: str) -> int:
    """Which shard holds a peer's record."""
    return hashlib.sha256(peer_id.encode()).digest()[0] % SHARDS


def record_key(namespace: bytes, peer_id: str) -> bytes:
    """The one key that a peer's record in a swarm may lie under."""
    return shard_key(namespace, shard_of(peer_id))


def distance(a: bytes, b: bytes) -> int:
    """Kademlia's XOR metric."""
    return int.from_bytes(a, "big") ^ int.from_bytes(b, "big")


def network_of(maddr: str) -> str | None:
    """The /24 or /48 that a multiaddr lies in; None, so no limit, if it has no IP address or a loopback or private one.

    A relayed peer counts as being where its relay is.
    """
    parts = maddr.split("/")
    if len(parts) < 3 or parts[1] not in ("ip4", "ip6"):
        return None
    try:
        address = ipaddress.ip_address(parts[2])
    except ValueError:
        return None
    if address.is_loopback or address.is_private or address.is_link_local:
        return None
    return str(ipaddress.ip_network((address, PREFIX_BITS[address.version]), strict=False))
