"""The failure catalogue's rows, each with its bar, over many seeds in virtual time (docs/faults.md lists them all).

What befalls comes at a random moment from when the hops are open: while the prompt runs, between two tokens or in
mid-step. Whatever the row, the tokens are those of the undisturbed run.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass, field

import pytest
from shoal.peer.pool import PoolConfig

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, generate, world

PROMPT = [5, 17, 42, 99, 7, 3, 250, 1, 2, 90, 33]
EXPECTED = toy.generate(PROMPT, N_BLOCKS, 40)
LONG = [(7 * i + 3) % 250 for i in range(40)]  # five pieces, on their way for longer than LONG_S
LONG_EXPECTED = toy.generate(LONG, N_BLOCKS, 6)
LONG_S = 0.05
TRIPLE = [(0, 2), (0, 2), (0, 3), (2, 4), (2, 4), (3, 5), (4, 6), (4, 6), (5, 6)]
DOUBLE = [(0, 3), (3, 6), (0, 3), (3, 6)]
LEG_S = 0.007  # the longest delay of the simulated network
STEP_S = 0.004 + 0.0002  # an engine step with one token
CONNECT_S = PoolConfig("sim").connect_timeout_s


@dataclass
class Run:
    """One generation under a fault that came at `at`: its tokens, the moment of each after that when its hops were
    open, what it cost."""

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

    @property
    def mended_s(self) -> float:
        """The longest wait, counted from the fault on."""
        return max(b - max(a, self.at) for a, b in itertools.pairwise(self.times) if b > self.at)


def disturbed(seed: int, disturb, spans=TRIPLE, prompt=PROMPT, count: int = 20, longest_s: float = 0.4) -> Run:
    """`disturb(world, session, rng)` is awaited at a random moment of a generation, beside it."""
    rng = random.Random(seed)

    async def main() -> Run:
        done, loop = Run(), asyncio.get_running_loop()
        async with world(seed, spans) as it, it.client() as swarm:
            began: asyncio.Future = loop.create_future()

            async def each(_number, session):
                done.times.append(loop.time())
                stats = session.stats
                done.repairs, done.moves, done.bridges = stats.repairs, stats.moves, stats.bridges

            async def befall():
                session = await began
                await session.ready([])
                done.times.append(loop.time())
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
                done.tokens = await generate(swarm, prompt, count, wait_s=60.0, each=each, begun=began.set_result)
                await fault
        return done

    return run(main())


def exact(done: Run) -> bool:
    return bool(done.tokens) and done.tokens == EXPECTED[: len(done.tokens)]


# -- kill -9 -----------------------------------------------------------------------------------------------------------


def mended_within_s(hops: int, tokens: int) -> float:
    """Everything counted in legs: the reset arrives (1), connect (2), open and tell (2 round trips), the token's own
    way through hops; and the new hop's one step of replay. A lost span may need two peers more, or three."""
    hops += 2
    replay_s = hops * (LEG_S + STEP_S + 0.0002 * tokens)
    token_s = (hops + 1) * LEG_S + hops * STEP_S
    return (1 + 2 + 4) * LEG_S + replay_s + token_s


@pytest.mark.parametrize("seed", range(100))
def test_a_killed_peer_costs_connect_replay_and_two_round_trips(seed):
    """No look-up on the way."""
    hops = 0

    async def disturb(it, session, rng):
        nonlocal hops
        hops = len(session.route)
        await it.kill(rng.choice(session.route).peer_id)

    done = disturbed(seed, disturb)
    assert exact(done)
    assert done.repairs == 1
    assert done.lookups == 0
    assert done.mended_s <= mended_within_s(hops, len(PROMPT) + 20)


@pytest.mark.parametrize("seed", range(30))
def test_a_peer_killed_while_the_prompt_runs_costs_no_more(seed):
    hops = 0

    async def disturb(it, session, rng):
        nonlocal hops
        hops = len(session.route)
        await it.kill(rng.choice(session.route).peer_id)

    done = disturbed(seed, disturb, prompt=LONG, count=6, longest_s=LONG_S)
    assert done.tokens == LONG_EXPECTED
    assert (done.repairs, done.lookups) == (1, 0)
    assert done.at < done.times[1]
    assert done.mended_s <= mended_within_s(hops, len(LONG))


# -- silence -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_a_hanging_peer_is_left_within_three_seconds(seed):
    async def disturb(it, session, rng):
        it.net.hang(rng.choice(session.route).peer_id)

    done = disturbed(seed, disturb)
    assert exact(done)
    assert done.stall_s <= 3.0


@pytest.mark.parametrize("seed", range(30))
def test_a_peer_that_hangs_while_the_prompt_runs_is_left_within_three_seconds(seed):
    """Nothing is known of the route's pace yet: it is the links' silence that tells."""

    async def disturb(it, session, rng):
        it.net.hang(rng.choice(session.route).peer_id)

    done = disturbed(seed, disturb, prompt=LONG, count=6, longest_s=LONG_S)
    assert done.tokens == LONG_EXPECTED
    assert done.at < done.times[1]
    assert 1.0 < done.stall_s <= 3.0


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
    comes back, which hurts nobody until the sender gives the link up. Hops that are not linked yet try for longer."""
    both, back = seed % 3 == 0, seed % 3 == 1
    bound_s = 3.0

    async def disturb(it, session, rng):
        nonlocal bound_s
        names = [hop.peer_id for hop in session.route]
        index = rng.randrange(len(names) - 1)
        there = (names[index], names[index + 1])
        bound_s = 3.0 if it.net.streams_of(*there) else CONNECT_S + 0.2
        it.net.part([there, there[::-1]] if both else [there[::-1]] if back else [there])

    done = disturbed(seed, disturb, spans=DOUBLE)
    assert exact(done)
    assert done.repairs or done.moves or done.bridges or back
    assert done.stall_s <= bound_s


@pytest.mark.parametrize("seed", range(60))
def test_a_way_to_or_from_the_client_that_is_silently_gone_is_left_within_three_seconds(seed):
    async def disturb(it, session, rng):
        there = rng.choice([("client", session.route[0].peer_id), (session.route[-1].peer_id, "client")])
        it.net.part([there, there[::-1]] if seed % 2 else [there])

    done = disturbed(seed, disturb)
    assert exact(done)
    assert done.repairs or done.moves
    assert done.stall_s <= 3.0
