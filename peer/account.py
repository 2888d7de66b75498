"""What a running peer tells its volunteer of itself, and what it does when asked: state, pause, resume. No sockets.

It outlives nodes: figures of those that are gone (the peer moved to other blocks, or joined again) are kept.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from shoal.dht.version import shoal_version
from shoal.peer.control import RequestError

if TYPE_CHECKING:
    from shoal.peer.config import PeerConfig
    from shoal.peer.node import Node
    from shoal.peer.pausing import Pausing

Stage = Literal["loading", "serving", "rejoining", "leaving"]

VOLUNTEER = "volunteer"
SLACK_S = 10.0  # beyond the time for draining, until a pause is reported as it then is
MAX_DRAIN_S = 3600.0


class Account:
    """One peer's own account of itself. `stage` is what its life is at."""

    def __init__(self, config: PeerConfig, peer_id: str, pausing: Pausing) -> None:
        self.stage: Stage = "loading"
        self._config, self._peer_id, self._pausing = config, peer_id, pausing
        self._began = time.monotonic()
        self._node: Node | None = None
        self._sessions = self._tokens = 0  # served by nodes that are gone
        self._busy_s = 0.0

    def attach(self, node: Node) -> None:
        """This node serves from now on."""
        if self._node is not None:
            self._sessions += self._node.book.opened
            self._tokens += self._node.tally.tokens
            self._busy_s += self._node.tally.busy_s
        self._node, self.stage = node, "serving"

    def busy_s(self) -> float:
        """Seconds that the engine has worked so far."""
        return self._busy_s + (self._node.tally.busy_s if self._node else 0.0)

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what the volunteer asks, and say how things stand. Errors: `RequestError`."""
        action = request.get("do")
        if action == "state":
            return self.state()
        if action == "pause":
            return await self._pause(_drain_s(request, self._config.drain_s))
        if action == "resume":
            return await self._resume()
        raise RequestError(f"{action!r} is not one of state, pause, resume")

    def state(self) -> dict[str, Any]:
        """Names, blocks, load and speed of this moment."""
        node, config = self._node, self._config
        return {
            "peer": self._peer_id, "name": config.name, "pid": os.getpid(), "version": shoal_version(),
            "swarm": config.invite.swarm, "model": config.model, "device": config.device,
            "state": self._word(), "why": list(self._pausing.reasons.values()),
            "blocks": [node.engine.start, node.engine.stop] if node else None,
            "uptime_s": time.monotonic() - self._began, **self._figures(),
        }  # fmt: skip

    def _figures(self) -> dict[str, Any]:
        node = self._node
        book, tally = (node.book, node.tally) if node else (None, None)
        return {
            "sessions": len(book.leases) if book else 0,
            "clients": len(book.clients()) if book else 0,
            "sessions_served": self._sessions + (book.opened if book else 0),
            "tokens_served": self._tokens + (tally.tokens if tally else 0),
            "tokens_per_s": tally.rate.per_s(time.perf_counter()) if tally else 0.0,
        }

    def _word(self) -> str:
        if self.stage != "serving" or not self._pausing.reasons:
            return self.stage
        return "paused" if self._pausing.settled.is_set() else "pausing"

    async def _pause(self, drain_s: float) -> dict[str, Any]:
        running = self._node is not None and not self._pausing.reasons
        self._pausing.hold(VOLUNTEER, "paused with `shoal pause`", drain_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s + SLACK_S):
                await self._pausing.settled.wait()
        outcome = self._pausing.outcome
        told = {"moved": outcome.moved, "ended": outcome.ended, "took_s": outcome.took_s} if running else {}
        return {**self.state(), **told}

    async def _resume(self) -> dict[str, Any]:
        self._pausing.release(VOLUNTEER)
        with suppress(TimeoutError):
            async with asyncio.timeout(SLACK_S):
                await self._pausing.settled.wait()
        return self.state()


def _drain_s(request: dict[str, Any], default: float) -> float:
    given = request.get("drain_s")
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0.0 <= given <= MAX_DRAIN_S:
        raise RequestError(f"drain_s is a number of seconds up to {MAX_DRAIN_S:.0f}")
    return float(given)
