"""Address translation as routers at home do it: many hosts behind one public address. Pure: told `now`, opens nothing.

Works on packets as `traffic.py` gets them. A mapping gives a host's port a public port; it lives as long as something
passes through it, and what comes from outside gets in only from those that its host has sent to (RFC 4787 and 5382:
address and port-dependent filtering). TCP and UDP only, no way back in from inside (hairpinning), no ICMP.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from netlab.spec import Line

HEADER = 10  # of the device, before the IP header
TCP, UDP = 6, 17
CHECKSUM_AT = {TCP: 16, UDP: 6}
UNFINISHED = 1  # flag of the device's header: the sum covers the pseudo header only, the rest is left to hardware
SOURCE, DESTINATION = 12, 16  # in the IP header
PORTS = (1024, 65535)


@dataclass(slots=True)
class _Mapping:
    """inside: address and port of a host; key: what it is found by; far: to whom it sent, and when last."""

    inside: bytes
    key: tuple[int, bytes]
    used: float
    far: dict[bytes, float] = field(default_factory=dict)


class Router:
    """`public`: the address that all hosts behind it share; `hosts`: their numbers by their own addresses."""

    def __init__(self, public: bytes, hosts: Mapping[bytes, int], rng: random.Random) -> None:
        self.hosts = dict(hosts)
        self._public = public
        self._rng = rng
        self._by_port: dict[tuple[int, int], _Mapping] = {}
        self._ports: dict[tuple[int, bytes], int] = {}

    def outward(self, packet: bytes, line: Line, now: float) -> bytes | None:
        """A host's packet as the world sees it; None if it is none that can be translated."""
        found = _ends(packet)
        if found is None:
            return None
        protocol, near, far = found
        key = (protocol, near + far if line.nat == "symmetric" else near)
        port = self._ports.get(key)
        if port is None or now - self._by_port[protocol, port].used >= line.expire:
            self._forget(key)
            port = self._ports[key] = self._free_port(protocol, line, now)
            self._by_port[protocol, port] = _Mapping(near, key, now)
        mapping = self._by_port[protocol, port]
        mapping.used = mapping.far[far] = now
        return _with_end(packet, SOURCE, self._public + port.to_bytes(2, "big"))

    def inward(self, packet: bytes, line: Line, now: float) -> tuple[int, bytes] | None:
        """The host that a packet is for, and the packet as it gets it; None if nobody behind here waits for it."""
        address = packet[HEADER + DESTINATION : HEADER + DESTINATION + 4]
        if address in self.hosts:  # from its neighbour
            return self.hosts[address], packet
        found = _ends(packet)
        if found is None:
            return None
        protocol, far, near = found
        mapping = self._by_port.get((protocol, int.from_bytes(near[4:], "big")))
        if mapping is None or now - mapping.far.get(far, -line.expire) >= line.expire:
            return None
        mapping.used = mapping.far[far] = now
        return self.hosts[mapping.inside[:4]], _with_end(packet, DESTINATION, mapping.inside)

    def _free_port(self, protocol: int, line: Line, now: float) -> int:
        """One that nobody has, or nobody has used for long."""
        while True:
            port = self._rng.randint(*PORTS)
            old = self._by_port.get((protocol, port))
            if old is None or now - old.used >= line.expire:
                if old is not None:
                    self._forget(old.key)
                return port

    def _forget(self, key: tuple[int, bytes]) -> None:
        port = self._ports.pop(key, None)
        if port is not None:
            del self._by_port[key[0], port]


def _ends(packet: bytes) -> tuple[int, bytes, bytes] | None:
    """Protocol, and address and port (6 bytes) of sender and receiver; None if there are no ports in it."""
    protocol, at = packet[HEADER + 9], HEADER + (packet[HEADER] & 15) * 4
    later_fragment = int.from_bytes(packet[HEADER + 6 : HEADER + 8], "big") & 0x1FFF
    if protocol not in CHECKSUM_AT or later_fragment or len(packet) < at + CHECKSUM_AT[protocol] + 2:
        return None
    addresses, ports = packet[HEADER + SOURCE : HEADER + SOURCE + 8], packet[at : at + 4]
    return protocol, addresses[:4] + ports[:2], addresses[4:] + ports[2:]


def _with_end(packet: bytes, which: int, end: bytes) -> bytes:
    """A packet with another sender's or receiver's address and port, and with sums that are right (RFC 1624)."""
    changed = bytearray(packet)
    protocol, ip, ports = packet[HEADER + 9], HEADER + which, HEADER + (packet[HEADER] & 15) * 4
    at = ports + (0 if which == SOURCE else 2)
    address, port = _difference(packet[ip : ip + 4], end[:4]), _difference(packet[at : at + 2], end[4:])
    changed[ip : ip + 4], changed[at : at + 2] = end[:4], end[4:]
    _add(changed, HEADER + 10, -address)
    total = ports + CHECKSUM_AT[protocol]
    if packet[0] & UNFINISHED:
        _add(changed, total, address)
    elif protocol == TCP or any(packet[total : total + 2]):  # UDP may go without
        _add(changed, total, -address - port)
    return bytes(changed)


def _difference(old: bytes, new: bytes) -> int:
    """What changes in a sum over 16-bit words."""
    return sum(
        int.from_bytes(new[at : at + 2], "big") - int.from_bytes(old[at : at + 2], "big")
        for at in range(0, len(old), 2)
    )


def _add(packet: bytearray, at: int, value: int) -> None:
    """Add to a sum in ones' complement, which has two zeros: the one that UDP takes for "no sum" is not used."""
    total = (int.from_bytes(packet[at : at + 2], "big") + value) % 0xFFFF
    packet[at : at + 2] = (total or 0xFFFF).to_bytes(2, "big")
