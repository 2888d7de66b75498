"""Tells the swarm, again and again, what this peer serves and how it fares. Knows the directory, no sockets."""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shoal.dht.errors import DhtError
from shoal.peer.choose import LOADING_S
from shoal.peer.farewell import withdraw
from shoal.routing.announcement import Announcement, State, encode
from shoal.routing.rebalance import moved

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from shoal.dht.directory import Directory
    from shoal.dht.host import Reach
    from shoal.peer.node import Node

MAX_CHUNK = 4096  # prompt tokens in one message
PERIOD_S = 15.0
TTL_S = 45.0
REACH_PERIOD_S = 30.0
CHANGED_S = 2.0  # at most this often when the load changes
SLOW_WAY = 0.6  # of what this peer can send; ways that carry less are announced


@dataclass(frozen=True, slots=True)
class Facts:
    """What seldom changes while a peer serves; speeds are seconds per token and block, measured on this machine."""

    peer_id: str
    revision: str
    quantization: str
    dtype: str
    decode_s: float
    prefill_s: float
    addrs: tuple[str, ...]
    version: str
    name: str
    reach: Reach = "unknown"


class Announcer:
    """Announces at once, then every `PERIOD_S`, and soon after the number of leases or their room has changed."""

    def __init__(self, directory: Directory, node: Node, facts: Facts) -> None:
        self._directory = directory
        self._node = node
        self.facts = facts
        self.moving: range | None = None  # the blocks that this peer is about to serve instead
        # leases, free tokens, the line's rate, roughly, and how many ways are slower
        self._announced: tuple[int, int, int, int] | None = None

    async def run(self) -> None:
        """Announce until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if loop.time() >= due or self._room() != self._announced:
                await self.announce()
                due = loop.time() + PERIOD_S
            await asyncio.sleep(CHANGED_S)

    async def follow(self, look: Callable[[], Awaitable[tuple[Reach, tuple[str, ...]]]]) -> None:
        """Keep how we can be reached, and where, up to date until cancelled: relays come and go."""
        while True:
            await asyncio.sleep(REACH_PERIOD_S)
            try:
                reach, addrs = await look()
            except (OSError, EOFError):
                continue  # the network daemon is going; others notice that
            self.facts = replace(self.facts, reach=reach, addrs=addrs or self.facts.addrs)

    async def announce(self) -> None:
        """Announce once, with the figures of this moment."""
        self._announced = self._room()
        announcement, ttl_s = self.announcement(), TTL_S
        if self.moving is not None:
            announcement, ttl_s = moved(announcement, self.moving.start, self.moving.stop), LOADING_S
        await self._directory.announce(encode(announcement), ttl_s)

    def stay(self) -> None:
        """This peer does not move after all; `run` says so soon."""
        self.moving = self._announced = None

    async def withdraw(self) -> None:
        """Tell the swarm that this peer is gone."""
        await self._directory.withdraw()

    def announcement(self) -> Announcement:
        """What this peer would announce now; sequence and expiry are the directory's business."""
        facts, node = self.facts, self._node
        slower = 1.0 / node.config.duty.share if node.config.duty else 1.0
        return Announcement(
            peer_id=facts.peer_id, sequence=0, expiry=0.0, start=node.engine.start, stop=node.engine.stop,
            state=self.state, quantization=facts.quantization, dtype=facts.dtype,
            decode_s=facts.decode_s * slower, prefill_s=facts.prefill_s * slower,
            queue=self._load(), free_tokens=node.book.room_tokens(node.config.clock()), max_chunk=MAX_CHUNK,
            addrs=facts.addrs, rtts=tuple(node.rtts().items()), version=facts.version, name=facts.name,
            revision=facts.revision, reach=facts.reach, upload_bps=node.upload(), rates=self._slow_ways(),
        )  # fmt: skip

    @property
    def state(self) -> State:
        """Whether this peer takes sessions."""
        book = self._node.book
        return "draining" if book.draining else "paused" if book.paused else "online"

    def _load(self) -> int:
        return len(self._node.book.leases)

    def _slow_ways(self) -> tuple[tuple[str, float], ...]:
        """To peers to which much less comes through than this machine can send."""
        usual = self._node.upload()
        return tuple((there, rate) for there, rate in self._node.rates().items() if rate < SLOW_WAY * usual)

    def _room(self) -> tuple[int, int, int, int]:
        usual = round(3.0 * math.log2(1.0 + self._node.upload()))
        return self._load(), self._node.book.free_tokens, usual, len(self._slow_ways())


@asynccontextmanager
async def withdrawn_on_failure(directory: Directory) -> AsyncIterator[None]:
    """Take back what is announced if the block fails: others would plan with blocks that never come. Not if it is the
    directory that fails: it cannot be told, or another peer has our identity, and what is announced is that one's."""
    try:
        yield
    except DhtError:
        raise
    except Exception:
        with suppress(DhtError):  # what failed first is what the user is told
            await withdraw(directory)
        raise
