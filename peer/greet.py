"""How far peers are from here: a greeting each, timed. Opens no session and keeps no link."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from shoal.peer.errors import HopClosed, ProtocolError
from shoal.peer.link import Link, LinkState
from shoal.peer.transport import P2PTransport

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shoal.dht.host import Host
    from shoal.routing.announcement import Announcement

GREETING_S = 6.0
MOST = 32


async def round_trips(host: Host, peers: Iterable[Announcement]) -> dict[str, float]:
    """Seconds to each of at most `MOST` peers and back; those that do not answer in our version are left out."""
    some = list(peers)[:MOST]
    transport = P2PTransport(host)
    times = await asyncio.gather(*(_round_trip(transport, peer) for peer in some))
    return {peer.peer_id: rtt_s for peer, rtt_s in zip(some, times, strict=True) if rtt_s is not None}


async def _round_trip(transport: P2PTransport, peer: Announcement) -> float | None:
    try:
        async with asyncio.timeout(GREETING_S):
            stream = await transport.connect(peer.peer_id, peer.addrs)
            try:
                link, asked = Link("shoal-plan", time.perf_counter()), time.perf_counter()
                stream.write(*link.outbox)
                while link.state is LinkState.HELLO and (data := await stream.read()):
                    link.receive(data, time.perf_counter())
            finally:
                stream.close()
    except (TimeoutError, HopClosed, ProtocolError):
        return None
    return time.perf_counter() - asked if link.state is LinkState.OPEN else None
