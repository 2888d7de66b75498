"""Which of the addresses that somebody named for a peer are dialled. Told our own; asks the system's resolver alone.

Anybody may announce whatever addresses, and name them to a peer as its next hop's. Nobody on the Internet shall reach
into a volunteer's machine or network by them, nor into others' by forms of address that no peer has.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from shoal.dht.maddr import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

RESOLVE_S = 2.0
MAX_NAMES, MAX_PLACES_EACH = 2, 4  # names of machines that are looked up for one peer, and addresses that one may have
NETWORK_BITS = {4: 24, 6: 64}
# What peers announce: a place, also with its peer's id; a port for streams; a way through a relay.
FORM = re.compile(
    r"/ip([46])/([0-9a-fA-F.:]{2,39})/tcp/([1-9][0-9]{0,4})"
    r"(/p2p/\w{1,100}(/p2p-circuit(/p2p/\w{1,100})?)?|/tls/p2p/\w{1,100})?",
    re.ASCII,
)
NAMED = re.compile(r"/dns([46]?)/([0-9a-zA-Z.-]{1,253})(/tcp/([0-9]{1,5})(/.*)?)", re.ASCII)
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Scope(IntEnum):
    """From where a swarm's nodes can be reached."""

    MACHINE = 0
    NETWORK = 1  # a private one, or several
    INTERNET = 2


class Ways(NamedTuple):
    """Addresses that may be dialled. near: private ones in networks of ours, of a swarm that reaches beyond them: most
    likely another network's that has the same addresses."""

    far: tuple[str, ...]
    near: tuple[str, ...]


def target(maddr: str) -> IPAddress | None:
    """The IP address that dialling an address leads to, its peer's or its relay's; None if no peer has such a one."""
    found = FORM.fullmatch(maddr)
    if found is None or int(found[3]) > 65535:
        return None
    with suppress(ValueError):
        address = ipaddress.ip_address(found[2])
        if address.version == int(found[1]):
            return _plain(address)
    return None


def scope_of(ours: Iterable[str], nodes: Iterable[str]) -> Scope:
    """From where one gets to a swarm with these `nodes`, or without any to this machine."""
    found = [target(maddr) for maddr in tuple(nodes) or tuple(ours)]
    return max((_scope(address) if address else Scope.INTERNET for address in found), default=Scope.INTERNET)


def ways(maddrs: Iterable[str], ours: Sequence[str], nodes: Sequence[str]) -> Ways:
    """Sort what somebody named for a peer. `ours`: this machine's addresses; `nodes`: those of the swarm's nodes."""
    scope = scope_of(ours, nodes)
    own = {address for address in map(target, ours) if address is not None}
    networks = {_network(address) for address in own if _scope(address) is Scope.NETWORK}
    here = scope < Scope.INTERNET and (any(map(is_loopback, nodes)) or all(map(is_loopback, ours)))
    far, near = [], []
    for maddr in maddrs:
        address = target(maddr)
        if address is None or address.is_unspecified or address.is_multicast:
            continue
        its = _scope(address)
        if its is Scope.INTERNET or (its is Scope.NETWORK and scope < Scope.INTERNET and not address.is_link_local):
            far.append(maddr)
        elif its is Scope.MACHINE:
            far += [maddr] if here else []
        elif _network(address) in networks:
            near.append(maddr)
    return Ways(tuple(far), tuple(near))


def is_far(maddr: str) -> bool:
    """Whether an address leads out into the Internet."""
    address = target(maddr)
    return address is not None and _scope(address) is Scope.INTERNET


async def resolved(maddrs: Iterable[str]) -> tuple[str, ...]:
    """The same with addresses in place of machines' names, which would lead past every test; those that nobody knows
    are left out."""
    found: list[str] = []
    names = 0
    for maddr in maddrs:
        named = NAMED.fullmatch(maddr)
        if named is None:
            found.append(maddr)
        elif names < MAX_NAMES:
            names += 1
            found += await _look_up(*named.group(1, 2, 3, 4))
    return tuple(found)


async def _look_up(version: str, name: str, rest: str, port: str) -> list[str]:
    family = {"4": socket.AF_INET, "6": socket.AF_INET6, "": socket.AF_UNSPEC}[version]
    with suppress(OSError, UnicodeError, TimeoutError):
        async with asyncio.timeout(RESOLVE_S):
            loop = asyncio.get_running_loop()
            told = await loop.getaddrinfo(name, int(port), family=family, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(where[0]) for *_, where in told))[:MAX_PLACES_EACH]
        return [f"/ip{6 if ':' in address else 4}/{address}{rest}" for address in addresses]
    return []


def _plain(address: IPAddress) -> IPAddress:
    """The IPv4 address that an IPv6 one stands for, if it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _scope(address: IPAddress) -> Scope:
    if address.is_loopback:
        return Scope.MACHINE
    return Scope.INTERNET if address.is_global else Scope.NETWORK


def _network(address: IPAddress) -> str:
    return str(ipaddress.ip_network((address, NETWORK_BITS[address.version]), strict=False))
