"""Peers die, hang, fault and leave in virtual time; the tokens stay those of the undisturbed run."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, generate, world

PROMPT = [5, 17, 42, 99, 7, 3, 250, 1, 2, 90, 33]
TRIPLE = [(0, 2), (0, 2), (0, 3), (2, 4), (2, 4), (3, 5), (4, 6), (4, 6), (5, 6), (0, 6)]


def expected(count: int) -> list[int]:
    return toy.generate(PROMPT, N_BLOCKS, count)


def disturbed(seed: int, disturb, spans=TRIPLE, count: int = 24, wait_s: float = 60.0):
    """Generate while `disturb(world, session, token number, rng)` does its worst; returns tokens, repairs and moves,
    slowest."""

    async def main():
        rng = random.Random(seed)
        loop = asyncio.get_running_loop()
        times, repairs = [loop.time()], 0
        async with world(seed, spans) as it, it.client() as swarm:

            async def each(number, session):
                nonlocal repairs
                times.append(loop.time())
                repairs = session.stats.repairs + session.stats.moves
                await disturb(it, session, number, rng)

            tokens = await generate(swarm, PROMPT, count, wait_s=wait_s, each=each)
        stalls = [b - a for a, b in itertools.pairwise(times)]
        return tokens, repairs, max(stalls)

    return run(main())


@pytest.mark.parametrize("seed", range(20))
def test_killed_hops_change_nothing(seed):
    async def disturb(it, session, number, rng):
        if number in (3, 9, 15):
            victims = [hop.peer_id for hop in session.route]
            await it.kill(rng.choice(victims))

    tokens, repairs, stall = disturbed(seed, disturb)
    assert tokens == expected(24)
    assert repairs >= 3
    assert stall < 1.0


@pytest.mark.parametrize("seed", range(10))
def test_two_hops_dying_together_change_nothing(seed):
    async def disturb(it, session, number, rng):
        if number == 6:
            for hop in session.route[:2]:
                await it.kill(hop.peer_id)

    tokens, _, stall = disturbed(seed, disturb)
    assert tokens == expected(24)
    assert stall < 2.0


@pytest.mark.parametrize("seed", range(10))
def test_a_hanging_hop_is_left_within_two_seconds(seed):
    async def disturb(it, session, number, rng):
        if number == 5:
            it.net.hang(rng.choice(session.route).peer_id)

    tokens, repairs, stall = disturbed(seed, disturb)
    assert tokens == expected(24)
    assert repairs >= 1
    assert stall <= 2.0


@pytest.mark.parametrize("seed", range(5))
def test_late_answers_of_a_hop_that_comes_back_are_discarded(seed):
    async def disturb(it, session, number, rng):
        if number == 5:
            it.net.hang(session.route[-1].peer_id)
        if number == 12:
            for peer_id in list(it.net.hung):
                it.net.resume(peer_id)

    assert disturbed(seed, disturb)[0] == expected(24)


@pytest.mark.parametrize("seed", range(5))
def test_a_device_fault_moves_the_session(seed):
    async def disturb(it, session, number, rng):
        if number in (4, 8):
            it.peers[rng.choice(session.route).peer_id].engine.fault_next = True

    tokens, repairs, _ = disturbed(seed, disturb)
    assert tokens == expected(24)
    assert repairs >= 1


@pytest.mark.parametrize("seed", range(5))
def test_the_only_holder_restarts_under_its_name(seed):
    async def disturb(it, session, number, rng):
        if number == 7:
            await it.kill("p1")
            await asyncio.sleep(2)
            it.net.revive("p1")
            await it.add_peer("p1", 2, 4)

    tokens, repairs, _ = disturbed(seed, disturb, spans=[(0, 2), (2, 4), (4, 6)])
    assert tokens == expected(24)
    assert repairs >= 1


def test_a_draining_peer_finishes_its_sessions_and_takes_no_new_ones():
    async def main():
        async with world(3, [(0, 6), (0, 6)]) as it, it.client() as swarm:
            async with asyncio.TaskGroup() as tasks:
                runs = [tasks.create_task(generate(swarm, PROMPT, 24)) for _ in range(6)]
                await asyncio.sleep(0.1)
                drained = await it.stop("p0", drain_s=30)
                after = await generate(swarm, PROMPT, 8)
            return drained, [task.result() for task in runs], after

    drained, results, after = run(main())
    assert drained
    assert results == [expected(24)] * 6
    assert after == expected(8)


def test_an_interrupted_client_closes_its_leases_at_once():
    async def main():
        async with world(3, [(0, 3), (3, 6)]) as it:

            async def work():
                async with it.client() as swarm:
                    await generate(swarm, PROMPT, 500)

            task = it.tasks.create_task(work())
            await asyncio.sleep(1.0)
            open_then = [len(peer.node.book.leases) for peer in it.peers.values()]
            task.cancel()
            await asyncio.sleep(0.1)  # a lost link's leases would live on for seconds
            return open_then, [len(peer.node.book.leases) for peer in it.peers.values()]

    assert run(main()) == ([1, 1], [0, 0])


def test_a_vanished_client_gives_everything_back():
    async def main():
        async with world(3, [(0, 3), (3, 6)]) as it:
            async with asyncio.TaskGroup() as tasks:

                async def lost():
                    async with it.client("gone") as swarm:
                        await generate(swarm, PROMPT, 500)

                task = tasks.create_task(lost())
                await asyncio.sleep(1.0)
                it.net.kill("gone")
                task.cancel()
            await asyncio.sleep(10.0)
            return [(peer.node.book.pages.free, peer.engine.n_pages) for peer in it.peers.values()]

    assert all(free == total for free, total in run(main()))
