"""A swarm on an emulated network: three peers and spares, each on its own host, and this process as a client."""

from __future__ import annotations

import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from _swarm import PEER, median
from shoal.client.cli.children import Child, Children
from shoal.client.local import ClientModel, load_model
from shoal.client.options import Model, SessionOptions
from shoal.client.swarm import Swarm, SwarmOptions, join_swarm
from shoal.dht.invite import Invite

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from netlab.lab import Lab

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from shoal.client.remote import RemoteSession

PEERS = 3
HOSTS = "boot p1 p2 p3 s1 s2 me"
KV_TOKENS = 16384


@dataclass(frozen=True)
class Setting:
    """One of the three of the Petals paper. rate: bits/s; rtt_s: between any two hosts."""

    name: str
    rate: float
    rtt_s: float

    @property
    def lines(self) -> str:
        """Options of every host's line, as scripts/wan takes them."""
        return f"rate={self.rate / 1e6:.6f}Mbit rtt={self.rtt_s * 1e3:.6f}ms"


SETTINGS = (
    Setting("1gbit_5ms", 1e9, 0.005),
    Setting("100mbit_5ms", 1e8, 0.005),
    Setting("100mbit_100ms", 1e8, 0.1),
)


@dataclass(frozen=True)
class Stage:
    """What runs: the network, the client's place in the swarm, its part of the model, peers' processes by peer id."""

    lab: Lab
    swarm: Swarm
    model: ClientModel
    peers: dict[str, Child]
    hosts: dict[str, str]


def bounds(blocks: int, peers: int = PEERS) -> list[tuple[int, int]]:
    """Spans of nearly equal length."""
    cuts = [round(blocks * number / peers) for number in range(peers + 1)]
    return list(pairwise(cuts))


@asynccontextmanager
async def stage(model: str, setting: Setting, spares: Iterable[int] = (), hosts: str = "") -> AsyncIterator[Stage]:
    """A swarm of three peers, with another holder for each span in `spares`; `hosts`: options of the whole network, as
    scripts/wan takes them.

    Its lines are of `setting` from the beginning: connections remember for a while what they learned of a line, TCP's
    congestion control and the windows of libp2p's streams, and on lines that change under them are slow for minutes.
    """
    held = load_model(model, "float32")
    spans = bounds(held.ends.spec.n_blocks)
    with Lab(f"{setting.lines} {hosts} {HOSTS}") as lab:
        async with Children({"OMP_NUM_THREADS": "1"}) as children:
            argv = ["bootstrap", "--json", "--model", "bench", "--host", lab.hosts["boot"], "--port", "4001"]
            node = await children.start("bootstrap", argv, within=lab.command("boot"))
            invite = str((await node.event("invite"))["invite"])
            places = {f"p{number + 1}": spans[number] for number in range(PEERS)}
            places |= {f"s{number + 1}": spans[number] for number in spares}
            started = {}
            for host, (start, stop) in places.items():
                argv = [*PEER, "--model", model, "--join", invite, "--blocks", f"{start}:{stop}", "--dtype", "float32",
                        "--kv-tokens", str(KV_TOKENS), "--host", lab.hosts[host]]  # fmt: skip
                started[host] = await children.start(host, argv, within=lab.command(host))
            ids = {str((await child.event("event", "online"))["peer"]): host for host, child in started.items()}
            spec = held.ends.spec
            info = Model(spec.n_blocks, spec.hidden_size, held.checkpoint.revision)
            with lab.inside("me"):
                options = SwarmOptions(listen=lab.hosts["me"])
                async with join_swarm(Invite.parse(invite), info, options) as swarm:
                    await swarm.wait_covered(60)
                    peers = {peer: started[host] for peer, host in ids.items()}
                    yield Stage(lab, swarm, held, peers, ids)
                    for host in lab.hosts:
                        lab.set(host, "rate=0", "rtt=0ms")  # so that all can leave quickly


async def timed_step(session: RemoteSession, model: ClientModel, ids: list[int]) -> tuple[float, int]:
    """Run tokens and choose the next one; seconds of all that, and that token."""
    began = time.perf_counter()
    positions = torch.arange(session.position, session.position + len(ids))
    hidden = await session.step(model.ends.embed(torch.tensor(ids), positions))
    chosen = int(model.ends.logits(hidden[-1:])[-1].argmax())
    return time.perf_counter() - began, chosen


async def decode_s(made: Stage, context: int, steps: int, codec: str | None) -> float:
    """Median seconds of a greedy decode step behind `context` tokens."""
    options = SessionOptions(max_tokens=context + steps + 8, wait_s=20, codec=codec)
    async with made.swarm.session(options) as session:
        _, token = await timed_step(session, made.model, prompt(made.model, context))
        times = []
        for _ in range(steps):
            seconds, token = await timed_step(session, made.model, [token])
            times.append(seconds)
    return median(times[len(times) // 5 :])


async def prefill_s(made: Stage, tokens: int, codec: str | None, chunk: int | None = None) -> tuple[float, int]:
    """Seconds of a prompt's pass over a route that stands, and in how many chunks it went; `chunk`: tokens of one."""
    forced = {} if chunk is None else {"chunk_tokens": chunk}
    options = SessionOptions(max_tokens=tokens + 8, wait_s=20, codec=codec, **forced)
    ids = prompt(made.model, tokens)
    async with made.swarm.session(options) as session:
        await session.ready(ids)
        seconds, _ = await timed_step(session, made.model, ids)
        return seconds, session.stats.steps


def prompt(model: ClientModel, tokens: int) -> list[int]:
    """Some token ids, all different from their neighbours."""
    return [1 + (37 * index + index // 7) % (model.ends.spec.vocab_size - 1) for index in range(tokens)]
