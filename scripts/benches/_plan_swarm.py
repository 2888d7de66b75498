"""Machines of a made-up volunteer swarm: unlike in speed and room, in cities with distances between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.routing.announcement import Announcement, State

if TYPE_CHECKING:
    from random import Random

NOW = 1_800_000_000.0
TTL_S = 45.0
CITIES = 40
LIGHT_S = 0.11  # round trip across the whole map, by cable
NEIGHBOURS = 12
# (blocks that fit, seconds per token and block, share of the volunteers): 8 to 80 GB cards and laptops
KINDS = ((4, 0.0030, 4), (8, 0.0016, 5), (12, 0.0011, 4), (16, 0.0012, 3), (24, 0.0007, 2), (40, 0.0004, 1))


@dataclass(frozen=True, slots=True)
class Machine:
    """One volunteer's machine. `place`: on the map; `last_mile_s`: what its own line adds to every round trip."""

    peer_id: str
    place: tuple[float, float]
    last_mile_s: float
    capacity: int
    decode_s: float
    upload_bps: float


def machines(rng: Random, count: int, first: int = 0) -> list[Machine]:
    """`count` machines, numbered from `first`."""
    cities = [(math.cos(2.4 * i) * (i / CITIES) ** 0.5, math.sin(2.4 * i) * (i / CITIES) ** 0.5) for i in range(CITIES)]
    return [_machine(rng, cities, first + i) for i in range(count)]


def _machine(rng: Random, cities: list[tuple[float, float]], number: int) -> Machine:
    blocks, block_s, _ = rng.choices(KINDS, [share for _, _, share in KINDS])[0]
    x, y = cities[min(int(rng.expovariate(1 / 10)), CITIES - 1)]
    return Machine(
        peer_id=f"12D3KooW{number:08d}", place=(x + rng.gauss(0, 0.02), y + rng.gauss(0, 0.02)),
        last_mile_s=rng.lognormvariate(math.log(0.006), 0.6), capacity=blocks,
        decode_s=block_s * rng.lognormvariate(0, 0.3), upload_bps=rng.choice((1.25e6, 5e6, 12.5e6, 60e6)),
    )  # fmt: skip


def rtt_s(a: Machine, b: Machine) -> float:
    """Round trip between two machines, in seconds."""
    return LIGHT_S / 2 * math.dist(a.place, b.place) + a.last_mile_s + b.last_mile_s


def nearest(me: Machine, others: list[Machine], count: int = NEIGHBOURS) -> tuple[tuple[str, float], ...]:
    """What a peer would announce of its distances."""
    known = sorted((rtt_s(me, other), other.peer_id) for other in others if other is not me)[:count]
    return tuple((peer_id, seconds) for seconds, peer_id in known)


def announcement(
    me: Machine, span: range, state: State, at: float, rtts: tuple[tuple[str, float], ...] = (), queue: int = 0
) -> Announcement:
    """What a machine would announce at `at`."""
    return Announcement(
        peer_id=me.peer_id, sequence=1, expiry=at + TTL_S, start=span.start, stop=span.stop, state=state,
        quantization="nf4", dtype="bfloat16", decode_s=me.decode_s, prefill_s=me.decode_s / 20, queue=queue,
        free_tokens=1 << 20, max_chunk=4096, addrs=(), rtts=rtts, version="1", name="", revision="r",
        upload_bps=me.upload_bps,
    )  # fmt: skip
