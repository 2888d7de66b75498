"""What many links of one network take of a peer's time with frames that bring nothing; and a crowd of honest ones."""

from __future__ import annotations

import asyncio
import random

import pytest
from shoal.dht.drawing import Bound, Bounds, Shares
from shoal.peer.callers import FRAMES, Crowd
from shoal.peer.channel import Channel
from shoal.peer.link import Patience
from shoal.peer.toll import FRAME_BYTES, Toll
from shoal.peer.wire import VERSION, Hello, Ping, encode

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.network import SimNetwork, SimStream, SimTransport
from tests.sim.swarm import N_BLOCKS, generate, world

SCALE, SECONDS = 16, 10.0  # smaller bounds: a flood takes time here, too
SMALL = Bounds(*(Bound(burst // SCALE, per_s / SCALE) for burst, per_s in FRAMES))
TICK_S = 0.05
HELLO = b"".join(encode(Hello(version=VERSION, agent="flood")))
PING = b"".join(encode(Ping(nonce=1)))


async def flood(networks: list[str]) -> tuple[int, float]:
    """How many frames are read of links of these networks, twenty pings each 50 ms on each, and how long the
    slowest of a guest's pings takes, who has a network of its own."""
    loop, net, shares = asyncio.get_running_loop(), SimNetwork(random.Random(1)), Shares(SMALL)
    links = {}

    async def serve(stream) -> None:
        stream.crowd = Crowd(shares, networks[int(stream.remote)] if stream.remote.isdecimal() else "11.9.9.0/24")
        channel = Channel(stream, "b", Patience(), loop.time, toll=Toll())
        links[stream.remote] = channel.link
        await channel.run(lambda *_: None)

    async with net.tasks:
        serving = net.tasks.create_task(SimTransport(net, "b").serve(serve))
        await asyncio.sleep(0)
        streams = [await SimTransport(net, str(number)).connect("b", ()) for number in range(len(networks))]
        guest = Channel(await SimTransport(net, "guest").connect("b", ()), "guest", Patience(), loop.time)
        task = net.tasks.create_task(guest.run(lambda *_: None))
        for stream in streams:
            stream.write(HELLO)
        ended, slowest = loop.time() + SECONDS, 0.0
        while loop.time() < ended:
            for stream in streams:
                stream.write(PING * 20)
            guest.ping()
            await asyncio.sleep(TICK_S)
            slowest = max(slowest, guest.link.rtt_s or 9.0)
        read = sum(link.frames for name, link in links.items() if name != "guest")
        for stream in (*streams, guest):
            stream.close()
        for work in (task, serving):
            work.cancel()
    return read, slowest


def test_links_of_one_network_pay_together():
    read, slowest = run(flood(["11.0.0.0/24"] * 32))
    burst, per_s = SMALL.network.burst / FRAME_BYTES, SMALL.network.per_s / FRAME_BYTES
    assert burst < read < burst + 1.1 * SECONDS * per_s + 32 * 20
    assert slowest < 0.03


def test_many_networks_together_leave_a_guest_its_turn():
    read, slowest = run(flood([f"11.0.{number % 16}.0/24" for number in range(32)]))
    burst = SMALL.together.burst / FRAME_BYTES
    per_s = (SMALL.together.per_s + 16 * SMALL.lean.per_s) / FRAME_BYTES
    assert burst < read < burst + 1.1 * SECONDS * per_s + 32 * 20
    assert slowest < 0.03


@pytest.mark.parametrize("crowded", [False, True])
def test_64_clients_behind_one_address_are_as_quick_as_if_each_had_its_own(monkeypatch, crowded):
    """Their states are a few bytes each, so that nothing pays for their frames."""
    shares, slept = Shares(FRAMES), []
    usual = Crowd.wait_s
    monkeypatch.setattr(Crowd, "wait_s", lambda *args: slept.append(usual(*args)) or slept[-1])
    if crowded:
        monkeypatch.setattr(SimStream, "crowd", Crowd(shares, "11.0.0.0/24"))

    async def main() -> list[list[int]]:
        async with world(3, [(0, 3), (3, 6)]) as it, it.client() as swarm:
            return await asyncio.gather(*(generate(swarm, [1, 2, 3], 24, wait_s=20.0) for _ in range(64)))

    assert run(main()) == [toy.generate([1, 2, 3], N_BLOCKS, 24)] * 64
    assert bool(slept) == crowded
    assert not any(slept)
