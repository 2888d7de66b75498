"""Peers that cannot reach one another, in virtual time: the client carries what goes between them, exactly."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from shoal.client.options import SessionOptions

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.swarm import generate, world

PROMPT = list(range(3, 40))
COUNT = 16
EXPECTED = toy.generate(PROMPT, 6, COUNT)
THREE = [(0, 2), (2, 4), (4, 6)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("apart", [{("p0", "p1")}, {("p1", "p2")}, {("p0", "p1"), ("p1", "p2")}])
def test_the_tokens_are_exact_and_a_second_session_knows_the_way(seed, apart):
    async def main():
        async with world(seed, THREE) as it, it.client() as swarm:
            it.net.apart |= apart
            stats = []

            async def each(number, session):
                stats.append((session.stats.bridges, session.stats.repairs, it.net.legs))

            assert await generate(swarm, PROMPT, COUNT, each=each) == EXPECTED
            assert stats[-1][:2] == (len(apart), 0)
            legs = stats[-1][2] - stats[-5][2]
            assert legs == 4 * (4 + len(apart))  # each boundary through the client is one more leg a token
            assert await generate(swarm, PROMPT, COUNT, each=each) == EXPECTED
            assert stats[-1][:2] == (0, 0)
            assert not swarm.knowledge().banned

    run(main())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("victim", ["p0", "p1", "p2"])
def test_a_hop_dies_next_to_such_a_boundary(seed, victim):
    async def main():
        async with world(seed, [*THREE, *THREE]) as it, it.client() as swarm:
            it.net.apart |= {("p0", "p1"), ("p3", "p1"), ("p0", "p4"), ("p3", "p4")}
            route = []

            async def each(number, session):
                if number == COUNT // 2:
                    route.extend(hop.peer_id for hop in session.route)
                    await it.kill(route[int(victim[1])])
                if number == COUNT:
                    assert session.stats.repairs

            assert await generate(swarm, PROMPT, COUNT, each=each) == EXPECTED

    run(main())


def test_a_pair_that_loses_touch_in_mid_generation_goes_on():
    async def main():
        async with world(7, THREE) as it, it.client() as swarm:

            async def each(number, session):
                if number == 5:
                    it.net.apart.add(("p0", "p1"))
                    it.net.reset("p0", "p1")
                if number == COUNT:
                    assert (session.stats.bridges, session.stats.repairs) == (1, 0)

            assert await generate(swarm, PROMPT, COUNT, each=each) == EXPECTED

    run(main())


def test_a_long_prompt_is_cut_for_its_route():
    """Three hops: it passes in several pieces, and sooner than in one."""

    async def main(chunk_tokens):
        async with world(3, THREE) as it, it.client() as swarm:
            steps, at = [], []

            async def each(number, session):
                steps.append(session.stats.steps)
                at.append(asyncio.get_running_loop().time())

            prompt = [i % 250 for i in range(300)]
            started = asyncio.get_running_loop().time()
            assert await generate(swarm, prompt, 1, chunk_tokens, each=each) == toy.generate(prompt, 6, 1)
            return steps[0], at[0] - started

    steps, seconds = run(main(None))
    assert 1 < steps <= 32
    assert seconds < run(main(300))[1]


@pytest.mark.parametrize(
    ("width", "asked", "form"),
    [
        (toy.WIDTH, {"dtype": "bfloat16"}, "bfloat16"),
        (toy.WIDTH, {"dtype": "bfloat16", "codec": "auto"}, "bfloat16"),
        (1 << 16, {"dtype": "bfloat16", "codec": "auto"}, "int8"),  # 10 ms a token on a line of 100 Mbit/s
        (1 << 16, {"dtype": "float32", "codec": "auto"}, "float32"),
        (toy.WIDTH, {"dtype": "float32", "codec": "int8"}, "int8"),
    ],
)
def test_slow_lines_carry_int8_unless_exactness_was_asked_for(width, asked, form):
    async def main():
        async with world(3, THREE) as it, it.client() as swarm:
            swarm.model = replace(swarm.model, width=width)
            async with swarm.session(SessionOptions(max_tokens=50, **asked)) as session:
                return session._terms.dtype

    assert run(main()) == form


def test_how_many_round_trips_the_first_token_takes():
    """One to connect, one to open, and four legs: hops connect to one another while they are opened."""

    async def main():
        async with world(1, THREE) as it, it.client() as swarm:
            it.net.delay_s, it.net.jitter_s = 0.05, 0.0
            for peer in it.peers.values():
                peer.engine.step_s = peer.engine.token_s = 0.0
            trips = []
            for _ in range(2):
                started = asyncio.get_running_loop().time()
                await generate(swarm, [1, 2, 3], 1)
                trips.append((asyncio.get_running_loop().time() - started) / 0.1)
            return trips

    assert run(main()) == pytest.approx([4.0, 3.0], abs=0.05)
