"""How far peers are from here: a greeting and a ping each, timed. Opens no session and keeps no link."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shoal.peer.errors import HopClosed, ProtocolError
from shoal.peer.link import Link
from shoal.routing.survey import worth_measuring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from shoal.peer.transport import Transport
    from shoal.routing.announcement import Announcement
    from shoal.routing.view import View

GREETING_S = 6.0
MOST = 32
SURVEY_S = 1.5  # whoever looks for a place waits no longer for anybody


async def round_trips(
    transport: Transport,
    peers: Iterable[Announcement],
    within_s: float = GREETING_S,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Seconds to each of at most `MOST` peers and back; those that do not answer in our version are left out."""
    some = list(peers)[:MOST]
    times = await asyncio.gather(*(_round_trip(transport, peer, within_s, clock) for peer in some))
    return {peer.peer_id: rtt_s for peer, rtt_s in zip(some, times, strict=True) if rtt_s is not None}


@dataclass(frozen=True, slots=True)
class Surveyor:
    """Measures from the node of `transport` how far those peers are that matter for its place in the swarm."""

    transport: Transport
    rng: random.Random = field(default_factory=random.Random)
    clock: Callable[[], float] = time.perf_counter

    async def survey(self, view: View, known: Mapping[str, float]) -> dict[str, float]:
        """Round trips in seconds to those that answer in time, and those `known`, which are not measured again."""
        others = view.without(self.transport.peer_id)
        asked = [peer for peer in worth_measuring(others, self.rng) if peer.peer_id not in known]
        return {**await round_trips(self.transport, asked, SURVEY_S, self.clock), **known}


async def _round_trip(
    transport: Transport, peer: Announcement, within_s: float, clock: Callable[[], float]
) -> float | None:
    """A ping goes out behind the greeting: the other side's own may be under way already when the stream stands."""
    try:
        async with asyncio.timeout(within_s):
            stream = await transport.connect(peer.peer_id, peer.addrs)
            try:
                link = Link("shoal-survey", clock())
                link.ping(clock())
                stream.write(*link.outbox)
                while link.rtt_s is None and (data := await stream.read()):
                    link.receive(data, clock())
            finally:
                stream.close()
    except (TimeoutError, HopClosed, ProtocolError):
        return None
    return link.rtt_s
