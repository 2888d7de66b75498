"""Whether a running peer takes sessions: somebody's reasons against it, and what follows for the node that serves now.

A paused peer keeps its weights, its KV memory and its place in the directory; it refuses new sessions and has handed
the running ones over. The reasons outlive the node: a peer that rejoins or moves to other blocks stays paused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.peer.announcer import Announcer
    from shoal.peer.node import Node

logger = logging.getLogger("shoal.peer")

ENDED = "this peer was paused by its volunteer, and nobody had taken the session over in time"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the sessions that ran when the peer was paused: `moved` to others or finished, `ended` by us."""

    moved: int = 0
    ended: int = 0
    took_s: float = 0.0


class Pausing:
    """`reasons`: why this peer is paused, by who wants it; none: it serves. `run` performs what they ask for."""

    def __init__(self, drain_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.reasons: dict[str, str] = {}
        self.outcome = Outcome()
        self.settled = asyncio.Event()  # the sessions have gone, or the swarm knows that we are back
        self.settled.set()
        self._default_drain_s = drain_s
        self._now = clock
        self._until = 0.0  # sessions have so long to find another place
        self._changed = asyncio.Event()
        self._node: Node | None = None
        self._began, self._running = 0.0, 0  # when the last pause began, and how many sessions there were

    def hold(self, who: str, why: str, drain_s: float | None = None) -> None:
        """Pause, or stay paused, because of `who`. Running sessions have `drain_s` seconds to find another place."""
        new = who not in self.reasons or drain_s is not None  # a reason that is told again gives nobody more time
        self.reasons[who] = why
        until = self._now() + (self._default_drain_s if drain_s is None else drain_s)
        if self._node is not None and not self._node.book.paused:
            self._until = until
            logger.info("pausing: %s", why)
            self._began, self._running = self._now(), len(self._node.book.leases)
            self._node.pause()
            self._change()
        elif not self.settled.is_set() and new and until < self._until:
            self._until = until
            self._changed.set()

    def release(self, who: str) -> None:
        """`who` has no reason any more. Without any reason left, sessions are taken from this moment on."""
        self.reasons.pop(who, None)
        if self._node is not None and not self.reasons and self._node.book.paused:
            self._node.resume()
            self._change()

    def attach(self, node: Node) -> None:
        """This node serves from now on; to be told before it is announced."""
        self._node = node
        node.book.paused = bool(self.reasons)
        if not self.settled.is_set():  # the node before it went in the midst of a change
            self._changed.set()

    async def run(self, node: Node, announcer: Announcer) -> None:
        """Hand over and announce, each time something changes; until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await announcer.announce()
            if node.book.paused:
                await self._empty(node)
            else:
                logger.info("serving again")
            if not self._changed.is_set():
                self.settled.set()

    def _change(self) -> None:
        self.settled.clear()
        self._changed.set()

    async def _empty(self, node: Node) -> None:
        """Wait until the running sessions have gone, their time is up, or something changes."""
        async with asyncio.TaskGroup() as tasks:
            waits = [
                tasks.create_task(node.emptied(max(0.0, self._until - self._now()))),
                tasks.create_task(self._changed.wait()),
            ]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in waits:
                task.cancel()
        if self._changed.is_set():
            return
        left = len(node.book.leases)
        node.dismiss(ENDED)
        self.outcome = Outcome(max(0, self._running - left), left, self._now() - self._began)
        logger.info("paused: %d sessions went on elsewhere, %d ended", self.outcome.moved, left)
