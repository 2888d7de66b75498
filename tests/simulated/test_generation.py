"""Whole swarms in virtual time: right tokens, counted legs, one trace per seed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest
from shoal.client.options import SessionOptions
from shoal.peer.errors import NoRouteError

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, generate, states, world

PROMPT = [5, 17, 42, 99, 7, 3, 250, 1, 2, 90, 33]
SPANS = [(0, 2), (2, 4), (4, 6)]


def expected(count: int, prompt=PROMPT) -> list[int]:
    return toy.generate(prompt, N_BLOCKS, count)


def test_tokens_are_those_of_the_whole_model():
    async def main():
        async with world(1, SPANS) as it, it.client() as swarm:
            return await generate(swarm, PROMPT, 20)

    assert run(main()) == expected(20)


def test_same_seed_same_trace():
    async def main():
        async with world(7, [(0, 3), (0, 4), (3, 6), (2, 6)]) as it, it.client() as swarm:
            tokens = await generate(swarm, PROMPT, 8)
            return tokens, it.net.trace

    assert run(main()) == run(main())


def test_another_seed_another_trace():
    async def main(seed):
        async with world(seed, SPANS) as it, it.client() as swarm:
            await generate(swarm, PROMPT, 8)
            return it.net.trace

    assert run(main(1)) != run(main(2))


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_a_decoded_token_takes_hops_plus_one_legs(hops):
    size = N_BLOCKS // hops
    spans = [(i * size, (i + 1) * size) for i in range(hops)]
    legs = []

    async def main():
        async with world(3, spans) as it, it.client() as swarm:

            async def each(_number, _session):
                legs.append(it.net.legs)

            await generate(swarm, PROMPT, 10, each=each)

    run(main())
    assert {after - before for before, after in itertools.pairwise(legs)} == {hops + 1}


def test_a_prompt_crosses_each_boundary_once_a_chunk_and_comes_back_once():
    async def main():
        async with world(3, SPANS) as it, it.client() as swarm:
            await generate(swarm, list(range(1, 33)), 1, chunk_tokens=8)
            return it.net.legs

    assert run(main()) == 4 * 3 + 1


def test_sessions_decode_in_one_forward():
    async def main():
        async with world(5, []) as it, it.client() as swarm:
            await it.add_peer("p0", 0, 6, step_s=0.05)  # the engine is what is short, not the network
            await swarm.refresh()
            prompts = [[i + 1, 2 * i + 3, 7] for i in range(8)]
            async with asyncio.TaskGroup() as tasks:
                runs = [tasks.create_task(generate(swarm, prompt, 12)) for prompt in prompts]
            return [task.result() for task in runs], [expected(12, prompt) for prompt in prompts], it.peers["p0"].engine

    got, wanted, engine = run(main())
    assert got == wanted
    assert max(engine.batches) == 8
    assert len(engine.batches) <= 12 + 8  # sessions that fell out of step are waited for and come together


def test_missing_blocks_are_named():
    async def main():
        async with world(2, [(0, 2), (4, 6)]) as it, it.client() as swarm:
            with pytest.raises(NoRouteError) as caught:
                await generate(swarm, PROMPT, 2)
            return caught.value

    error = run(main())
    assert error.missing == (2, 3)
    assert "2-3" in str(error) or "2, 3" in str(error)


def test_a_route_is_waited_for():
    async def main():
        async with world(2, [(0, 2), (4, 6)]) as it, it.client() as swarm, asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(generate(swarm, PROMPT, 5, wait_s=30.0))
            await asyncio.sleep(5)
            await it.add_peer("late", 2, 4)
            return await waiting

    assert run(main()) == expected(5)


def test_full_peers_are_busy_before_the_first_token_and_others_stay_exact():
    async def main():
        async with world(4, []) as it:
            await it.add_peer("small", 0, 6, n_pages=8)  # 32 tokens in all
            async with it.client() as swarm, swarm_session(swarm, 30) as held:
                assert held.position == 3
                with pytest.raises(NoRouteError):
                    await generate(swarm, PROMPT, 10)
                return it.peers["small"].node.book.free_tokens

    assert run(main()) == 0


def test_pages_come_back_when_sessions_end():
    async def main():
        async with world(4, SPANS) as it, it.client() as swarm:
            for _ in range(20):
                await generate(swarm, PROMPT, 3)
            await asyncio.sleep(1)
            return [(peer.node.book.pages.free, peer.engine.n_pages) for peer in it.peers.values()]

    assert all(free == total for free, total in run(main()))


@pytest.mark.parametrize("priority", [0, 1])
def test_peers_know_a_background_session_for_one(priority):
    async def main():
        options = SessionOptions(max_tokens=8, priority=priority)
        async with world(4, SPANS) as it, it.client() as swarm, swarm.session(options) as session:
            await session.step(states([1, 2, 3]))
            books = [peer.node.book for peer in it.peers.values()]
            return [lease.holding.priority for book in books for lease in book.leases.values()]

    assert run(main()) == [priority] * 3


def test_setting_the_position_back_repeats_the_same_tokens():
    async def main():
        async with world(6, SPANS) as it, it.client() as swarm, swarm_session(swarm, 40) as session:
            first = await decode(session, 9, 5)
            session.position = 3
            second = await decode(session, 9, 5)
            return first, second

    first, second = run(main())
    assert first == second


def swarm_session(swarm, max_tokens):
    @contextlib.asynccontextmanager
    async def opened():
        async with swarm.session(SessionOptions(max_tokens=max_tokens)) as session:
            await session.step(states([1, 2, 3]))
            yield session

    return opened()


async def decode(session, token, count):
    tokens = []
    for _ in range(count):
        token = toy.choose((await session.step(states([token])))[-1].tolist())
        tokens.append(token)
    return tokens
