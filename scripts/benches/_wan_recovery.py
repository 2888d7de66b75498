"""How long a generation stands still when a hop is killed or hangs, against what repairing it must take."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from _swarm import median, tell
from _wan_swarm import Stage, bounds, prompt, timed_step
from shoal.client.options import SessionOptions
from shoal.dht.host import HostConfig, open_host
from shoal.peer.link import Link, LinkState
from shoal.peer.transport import P2PTransport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _wan_swarm import Setting

CONTEXT = 128
HANG_GOAL_S = 3.0
AFTER = 6  # tokens before and after the fault


@dataclass(frozen=True)
class Recovery:
    """Seconds. The stall of a killed hop and its bound's three parts; the stall of a hop that hangs."""

    killed: float
    connect: float
    replay: float
    two_round_trips: float
    hung: float

    @property
    def bound(self) -> float:
        """What a repair may take after a kill."""
        return self.connect + self.replay + self.two_round_trips


def verdict(figures: Mapping[str, float], setting: str) -> str:
    """Which goals of recovery were missed in a setting, or `ok`."""
    kill_s, bound_s, hang_s = (figures[f"{part}_s_{setting}"] for part in ("stall_kill", "bound", "stall_hang"))
    late = ["kill"] * (kill_s > bound_s) + ["hang"] * (hang_s > HANG_GOAL_S)
    return f"missed: {', '.join(late)}" if late else "ok"


async def recovery(made: Stage, setting: Setting, codec: str | None) -> Recovery:
    """Kill the middle hop, then stop the first one; both need a spare online."""
    tell(f"{setting.name}: kill -9 of the middle hop")
    killed, spare = await _stall(made, 1, signal.SIGKILL, codec)
    connect, replay = await _connect_s(made, spare), await _replay_s(made, codec)
    tell(f"{setting.name}: the first hop hangs")
    hung, _ = await _stall(made, 0, signal.SIGSTOP, codec)
    for child in made.peers.values():
        with suppress(ProcessLookupError):  # the one that was killed
            child.signal(signal.SIGCONT)
    return Recovery(killed, connect, replay, 2 * setting.rtt_s, hung)


async def _stall(made: Stage, hop: int, fault: signal.Signals, codec: str | None) -> tuple[float, str]:
    """Seconds that the step under way took longer than the others; and the peer that took over."""
    options = SessionOptions(max_tokens=CONTEXT + 4 * AFTER, wait_s=30, codec=codec)
    async with made.swarm.session(options) as session:
        _, token = await timed_step(session, made.model, prompt(made.model, CONTEXT))
        times = []
        for number in range(2 * AFTER):
            if number == AFTER:
                made.peers[session.route[hop].peer_id].signal(fault)
            seconds, token = await timed_step(session, made.model, [token])
            times.append(seconds)
        if not session.stats.repairs + session.stats.moves:
            raise RuntimeError("the fault hit nobody that the generation used")
        return max(times[AFTER:]) - median(times[:AFTER]), session.route[hop].peer_id


async def _connect_s(made: Stage, peer_id: str) -> float:
    """Seconds from nothing to greetings exchanged with a peer, for a host that never met it."""
    addrs = made.swarm.addrs(peer_id)
    async with open_host(HostConfig(listen=made.lab.hosts["me"])) as host:
        began = time.perf_counter()
        stream = await P2PTransport(host).connect(peer_id, addrs)
        link = Link("shoal-bench", began)
        stream.write(*link.outbox)
        while link.state is LinkState.HELLO:
            link.receive(await stream.read(), time.perf_counter())
        seconds = time.perf_counter() - began
        stream.close()
    return seconds


async def _replay_s(made: Stage, codec: str | None) -> float:
    """Seconds for the middle span to take in and compute what its predecessor computed before."""
    start, stop = bounds(made.model.ends.spec.n_blocks)[1]
    options = SessionOptions(max_tokens=CONTEXT + 8, start=start, stop=stop, wait_s=20, codec=codec)
    hidden = torch.randn(CONTEXT + AFTER, made.model.ends.spec.hidden_size)
    async with made.swarm.session(options) as session:
        await session.ready([])
        single = time.perf_counter()
        await session.step(hidden[:1])
        whole = time.perf_counter()
        await session.step(hidden[1:CONTEXT])
        end = time.perf_counter()
    return max(0.0, (end - whole) - (whole - single))
