"""Multiaddrs in libp2p's binary form, relay addresses too. Text in, bytes out; knows no network.

hivemind's own codec writes an Ed25519 peer id inside an address as a CID, which the daemon refuses.
"""

from __future__ import annotations

from typing import NamedTuple

P2P_CODE = b"\xa5\x03"  # 421 as a varint
CIRCUIT_CODE = b"\xa2\x02"  # 290
CIRCUIT = "/p2p-circuit"


class Packed(NamedTuple):
    """An address as hivemind's client wants it."""

    data: bytes

    def to_bytes(self) -> bytes:
        """The binary form."""
        return self.data


def pack(maddr: str) -> Packed:
    """Binary form of `/ip4/A/tcp/P` or of `/ip4/A/tcp/P/p2p/RELAY/p2p-circuit`. Errors: `ValueError`."""
    from shoal.dht.foreign import Multiaddr, PeerID

    where, relayed, relay = maddr.removesuffix(CIRCUIT).partition("/p2p/")
    if not relayed:
        return Packed(bytes(Multiaddr(where).to_bytes()))
    if not maddr.endswith(CIRCUIT) or "/" in relay:
        raise ValueError(f"{maddr!r} is not the address of a peer or of a way through a relay")
    relay_id = PeerID.from_base58(relay).to_bytes()
    return Packed(bytes(Multiaddr(where).to_bytes()) + P2P_CODE + bytes([len(relay_id)]) + relay_id + CIRCUIT_CODE)


def is_relayed(maddr: str) -> bool:
    """Whether an address leads through a relay."""
    return CIRCUIT in maddr


def is_loopback(maddr: str) -> bool:
    """Whether an address is one of this machine for itself."""
    return maddr.startswith(("/ip4/127.", "/ip6/::1/"))


def endpoint(maddr: str) -> tuple[str, int] | None:
    """IP address and TCP port of a direct address; None for any other."""
    parts = maddr.split("/")
    if len(parts) < 5 or parts[1] not in {"ip4", "ip6"} or parts[3] != "tcp" or is_relayed(maddr):
        return None
    return (parts[2], int(parts[4])) if parts[4].isdecimal() else None


def direct_place(maddr: str) -> tuple[str, int] | None:
    """IP address and TCP port of a peer's own port for streams, `/ip4/A/tcp/P/tls/p2p/ID`; None for any other."""
    parts = maddr.split("/")
    return endpoint(maddr) if len(parts) == 8 and parts[5:7] == ["tls", "p2p"] else None


def direct_maddr(address: str, port: int, peer_id: str) -> str:
    """The multiaddr of a peer's own port for streams."""
    return f"/ip{6 if ':' in address else 4}/{address}/tcp/{port}/tls/p2p/{peer_id}"
