"""Which blocks a joining peer takes: looks at the swarm, decides, and says so before the slow loading begins."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.dht.errors import DhtError
from shoal.routing.announcement import Announcement, AnnouncementError, decode, encode
from shoal.routing.knowledge import Knowledge, Speed, middle_leg_s
from shoal.routing.placement import place_span
from shoal.routing.view import View, fold

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from shoal.dht.directory import Directory

    # round trips in seconds to peers of a view, those that are known among them
    Survey = Callable[[View, Mapping[str, float]], Awaitable[Mapping[str, float]]]

logger = logging.getLogger("shoal.peer")

# What a block takes before anything is loaded that could be measured: of a swarm's first peer, and of machines that are
# known to exist.
ASSUMED = Speed(1e-3, 1e-3)
SPREAD_S = 1.0  # peers that were started together look one after the other
SETTLED_S = 0.5  # after this, what others announced at the same moment can be seen
LOADING_S = 240.0  # how long others count on blocks that are being loaded


@dataclass(frozen=True, slots=True)
class Seat:
    """What a joining peer is and has room for: `capacity` blocks of a model of `n_blocks`."""

    peer_id: str
    addrs: tuple[str, ...]
    n_blocks: int
    capacity: int
    revision: str
    quantization: str
    dtype: str
    version: str
    name: str


async def choose(directory: Directory, seat: Seat, survey: Survey) -> range:
    """The span that helps the swarm most. It is announced as `joining`, so that the next one to look chooses others.

    Of two peers that looked at the same moment and chose the same blocks, the one with the greater id chooses again.
    """
    rng = random.Random()  # noqa: S311 - spreads joiners, no secret
    rtts_s = await survey(await _look(directory, seat), {}) if seat.capacity < seat.n_blocks else {}
    await asyncio.sleep(rng.random() * SPREAD_S)
    span = await _take(directory, seat, await _look(directory, seat), rtts_s, rng)
    await asyncio.sleep(SETTLED_S)
    view = await _look(directory, seat)
    if any(_comes_before(peer, seat, span) for peer in view.peers):
        logger.info("another peer took these blocks at the same moment; choosing again")
        span = await _take(directory, seat, view, rtts_s, rng)
    return span


async def keep_announced(directory: Directory, seat_now: Callable[[], Seat], span: range) -> None:
    """Say again and again that these blocks are about to be served, until cancelled: a download may take hours, in
    which the machine may be given another address."""
    speed = None
    while True:
        await asyncio.sleep(LOADING_S / 4)
        try:
            speed = speed or presumed(await _look(directory, seat_now()))
            await directory.announce(encode(_joining(seat_now(), span, speed)), LOADING_S)
        except DhtError as error:
            logger.debug("could not announce what is being loaded: %s", error)


def presumed(view: View) -> Speed:
    """What a peer that has measured nothing counts as: one like the others."""
    claims = sorted((peer.decode_s, peer.prefill_s) for peer in view.peers if peer.state == "online")
    return Speed(*claims[len(claims) // 2]) if claims else ASSUMED


def knowing(rtts_s: Mapping[str, float]) -> Knowledge:
    """What a joining peer knows that has measured these round trips."""
    return Knowledge(own=ASSUMED, rtts_s=rtts_s, default_leg_s=middle_leg_s(rtts_s))


async def _take(directory: Directory, seat: Seat, view: View, rtts_s: Mapping[str, float], rng: random.Random) -> range:
    speed = presumed(view)
    placement = place_span(view, seat.capacity, speed, view.at, rng, knowing(rtts_s))
    logger.info("taking blocks %d:%d: %s", placement.start, placement.stop, placement.reason)
    await directory.announce(encode(_joining(seat, range(placement.start, placement.stop), speed)), LOADING_S)
    return range(placement.start, placement.stop)


def _comes_before(peer: Announcement, seat: Seat, span: range) -> bool:
    """Whether a peer is about to serve some of our blocks and has the right of way."""
    overlaps = peer.start < span.stop and span.start < peer.stop
    return peer.state == "joining" and overlaps and peer.peer_id < seat.peer_id


async def _look(directory: Directory, seat: Seat) -> View:
    return await look_up(directory, seat.peer_id, seat.revision, seat.n_blocks, time.time())


async def look_up(directory: Directory, me: str, revision: str, n_blocks: int, now: float) -> View:
    """The peers of `revision` but `me`, as known at `now`."""
    announcements = []
    for record in await directory.lookup():
        if record.revision == revision and record.peer_id != me:
            try:
                announcements.append(decode(record, n_blocks))
            except AnnouncementError:
                continue  # one bad record hides no other
    return fold(View(n_blocks), announcements, now)


def _joining(seat: Seat, span: range, speed: Speed) -> Announcement:
    return Announcement(
        peer_id=seat.peer_id, sequence=0, expiry=0.0, start=span.start, stop=span.stop, state="joining",
        quantization=seat.quantization, dtype=seat.dtype, decode_s=speed.decode_s, prefill_s=speed.prefill_s, queue=0,
        free_tokens=0, max_chunk=1, addrs=seat.addrs, rtts=(), version=seat.version, name=seat.name,
        revision=seat.revision,
    )  # fmt: skip
