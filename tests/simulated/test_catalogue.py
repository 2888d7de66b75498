"""The failure catalogue's rows, each with its bar, over many seeds in virtual time (docs/faults.md lists them all).

What befalls comes at a random moment: while the prompt runs, between two tokens or in mid-step. Whatever the row, the
tokens are those of the undisturbed run.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass, field

import pytest

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, generate, world

PROMPT = [5, 17, 42, 99, 7, 3, 250, 1, 2, 90, 33]
EXPECTED = toy.generate(PROMPT, N_BLOCKS, 40)
TRIPLE = [(0, 2), (0, 2), (0, 3), (2, 4), (2, 4), (3, 5), (4, 6), (4, 6), (5, 6)]
DOUBLE = [(0, 3), (3, 6), (0, 3), (3, 6)]
LEG_S = 0.007  # the longest delay of the simulated network
STEP_S = 0.004 + 0.0002  # an engine step with one token


@dataclass
class Run:
    """One generation under a fault that came at `at`: its tokens, the moment of each, what it cost."""

    at: float = 0.0
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    repairs: int = 0
    moves: int = 0
    bridges: int = 0
    lookups: int = 0

    @property
    def stall_s(self) -> float:
        return max(b - a for a, b in itertools.pairwise(self.times))


def disturbed(seed: int, disturb, spans=TRIPLE, count: int = 20, wait_s: float = 60.0, longest_s: float = 0.4) -> Run:
    """`disturb(world, session, rng)` is awaited at a random moment of a generation, beside it."""
    rng = random.Random(seed)

    async def main() -> Run:
        done, loop = Run(), asyncio.get_running_loop()
        async with world(seed, spans) as it, it.client() as swarm:
            opened: asyncio.Future = loop.create_future()
            done.times.append(loop.time())

            async def each(_number, session):
                done.times.append(loop.time())
                stats = session.stats
                done.repairs, done.moves, done.bridges = stats.repairs, stats.moves, stats.bridges
                if not opened.done():
                    opened.set_result(session)

            async def befall():
                session = await opened
                await asyncio.sleep(rng.uniform(0.0, longest_s))
                done.at = loop.time()
                lookup = swarm._place.directory.lookup

                async def counted(within_s=None):
                    done.lookups += asyncio.current_task() is not swarm._watching
                    return await lookup(within_s)

                swarm._place.directory.lookup = counted
                await disturb(it, session, rng)

            async with asyncio.TaskGroup() as tasks:
                fault = tasks.create_task(befall())
                done.tokens = await generate(swarm, PROMPT, count, wait_s=wait_s, each=each)
                await fault
        return done

    return run(main())


def exact(done: Run) -> bool:
    return bool(done.tokens) and done.tokens == EXPECTED[: len(done.tokens)]


# -- kill -9 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(100))
def test_a_killed_peer_costs_connect_replay_and_two_round_trips(seed):
    """No look-up on the way. Everything counted in legs: the reset arrives (1), connect (2), open and tell (2 round
    trips), the token's own way through hops; and the new hop's one step of replay."""
    hops = 0

    async def disturb(it, session, rng):
        nonlocal hops
        hops = len(session.route)
        await it.kill(rng.choice(session.route).peer_id)

    done = disturbed(seed, disturb)
    assert exact(done)
    assert done.repairs == 1
    assert done.lookups == 0
    hops += 2  # a lost span may need two peers, or three
    replay_s = hops * (LEG_S + STEP_S + 0.0002 * (len(PROMPT) + 20))
    token_s = (hops + 1) * LEG_S + hops * STEP_S
    assert done.stall_s <= (1 + 2 + 4) * LEG_S + replay_s + 2 * token_s


# -- silence -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_a_hanging_peer_is_left_within_three_seconds(seed):
    async def disturb(it, session, rng):
        it.net.hang(rng.choice(session.route).peer_id)

    done = disturbed(seed, disturb)
    assert exact(done)
    assert done.stall_s <= 3.0


@pytest.mark.parametrize("seed", range(40))
def test_late_words_of_a_peer_that_hung_are_not_heard(seed):
    """It goes on when another has taken over, or in the middle of that."""

    async def disturb(it, session, rng):
        name = rng.choice(session.route).peer_id
        it.net.hang(name)
        await asyncio.sleep(rng.uniform(2.0, 3.2))
        it.net.resume(name)

    assert exact(disturbed(seed, disturb))


@pytest.mark.parametrize("seed", range(60))
def test_a_way_between_two_hops_that_is_silently_gone_is_left_within_three_seconds(seed):
    """Half-open: both peers are well and hear the client, and nothing passes from one to the next any more. Or nothing
    comes back, which hurts nobody until the sender gives the link up."""
    both, back = seed % 3 == 0, seed % 3 == 1

    async def disturb(it, session, rng):
        names = [hop.peer_id for hop in session.route]
        index = rng.randrange(len(names) - 1)
        there = (names[index], names[index + 1])
        it.net.part([there, there[::-1]] if both else [there[::-1]] if back else [there])

    done = disturbed(seed, disturb, spans=DOUBLE)
    assert exact(done)
    assert done.repairs or done.moves or done.bridges or back
    assert done.stall_s <= 3.0


@pytest.mark.parametrize("seed", range(60))
def test_a_way_to_or_from_the_client_that_is_silently_gone_is_left_within_three_seconds(seed):
    async def disturb(it, session, rng):
        there = rng.choice([("client", session.route[0].peer_id), (session.route[-1].peer_id, "client")])
        it.net.part([there, there[::-1]] if seed % 2 else [there])

    done = disturbed(seed, disturb)
    assert exact(done)
    assert done.repairs or done.moves
    assert done.stall_s <= 3.0
