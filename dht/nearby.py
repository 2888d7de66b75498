"""Peers in our own local network, which routers and relays would have us meet outside of it. Dials; keeps nothing.

Of a neighbour the directory's nodes know the way through a relay alone, since libp2p tells them no private addresses.
Both stand behind one public address, so no hole can be punched either. But announcements name private addresses too.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from typing import TYPE_CHECKING

from shoal.dht.foreign import P2PDaemonError, PeerID
from shoal.dht.maddr import endpoint, pack
from shoal.dht.proof import proves

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shoal.dht.host import Host

logger = logging.getLogger(__name__)

PROOF_S = 0.5  # in a local network
NETWORK_BITS = 24


def in_our_network(maddrs: Iterable[str], ours: Iterable[str]) -> list[str]:
    """The direct addresses among `maddrs` that are private and in the /24 of one of `ours`, but not our own."""
    own = {found[0] for found in map(endpoint, ours) if found}
    networks = {_network_of(address) for address in own} - {None}
    found = [(maddr, endpoint(maddr)) for maddr in maddrs]
    return [maddr for maddr, end in found if end and end[0] not in own and _network_of(end[0]) in networks]


async def meet_nearby(host: Host, peer_id: str, maddrs: Iterable[str]) -> None:
    """Go over to a direct connection if a peer that we reach through relays alone proves to be in our own network. What
    still runs over the relays is lost then. Errors: `OSError`, `EOFError` and `P2PDaemonError` if the daemon dies."""
    near = in_our_network(maddrs, await host.look())
    if not near or await host.direct_to(peer_id):
        return
    # Other networks have the same addresses, and whoever named them shall not see whether something listens there:
    # nothing is given up before the peer itself has answered.
    maddr = await _where_it_is(peer_id, host.knocks.take(near))
    if maddr is None:
        return
    peer = PeerID.from_base58(peer_id)
    await host.p2p.part(peer)
    try:
        await host.p2p.dial(peer, [pack(maddr.removesuffix(f"/p2p/{peer_id}"))])
    except P2PDaemonError as error:
        logger.debug("%s is not at %s any more: %s", peer_id, maddr, error)
        await host.p2p.dial(peer, [pack(other.removesuffix(f"/p2p/{peer_id}")) for other in maddrs])


async def _where_it_is(peer_id: str, maddrs: Iterable[str]) -> str | None:
    """The address among these at which the peer is. If it is at none, that takes `PROOF_S` whatever is there."""
    places = {maddr: found for maddr in maddrs if (found := endpoint(maddr))}
    if not places:
        return None
    loop = asyncio.get_running_loop()
    end = loop.time() + PROOF_S
    tries = {asyncio.create_task(proves(peer_id, *place)): maddr for maddr, place in places.items()}
    try:
        waiting = set(tries)
        while waiting and (left_s := end - loop.time()) > 0:
            done, waiting = await asyncio.wait(waiting, timeout=left_s, return_when="FIRST_COMPLETED")
            for task in done:
                if task.result():
                    return tries[task]
        await asyncio.sleep(end - loop.time())
        return None
    finally:
        for task in tries:
            task.cancel()


def _network_of(address: str) -> ipaddress.IPv4Network | None:
    """The /24 of a private IPv4 address."""
    found = ipaddress.ip_address(address)
    if found.version != 4 or not found.is_private or found.is_loopback:
        return None
    return ipaddress.IPv4Network((address, NETWORK_BITS), strict=False)
