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
from shoal.peer.link import IMPATIENT

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.network import SimTransport
from tests.sim.swarm import N_BLOCKS, generate, world

PROMPT = [5, 17, 42, 99, 7, 3, 250, 1, 2, 90, 33]
EXPECTED = toy.generate(PROMPT, N_BLOCKS, 40)
FOUR = EXPECTED[:4]
LONG = [(7 * i + 3) % 250 for i in range(40)]  # five pieces, on their way for longer than LONG_S
LONG_EXPECTED = toy.generate(LONG, N_BLOCKS, 6)
LONG_S = 0.05
TRIPLE = [(0, 2), (0, 2), (0, 3), (2, 4), (2, 4), (3, 5), (4, 6), (4, 6), (5, 6)]
DOUBLE = [(0, 3), (3, 6), (0, 3), (3, 6)]
LEG_S = 0.007  # the longest delay of the simulated network
STEP_S = 0.004 + 0.0002  # an engine step with one token
OPENING_S = 0.06  # what it takes to connect, to open two hops and to send a short prompt through


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


def disturbed(
    seed: int, disturb, spans=TRIPLE, prompt=PROMPT, count: int = 20, longest_s: float = 0.4, opening: bool = False
) -> Run:
    """`disturb(world, session, rng)` is awaited at a random moment of a generation, beside it; `opening`: at a moment
    given by the seed from when its hops are known, to which the client may not be linked yet."""
    rng = random.Random(seed)

    async def main() -> Run:
        done, loop = Run(), asyncio.get_running_loop()
        async with world(seed, spans) as it, it.client() as swarm:
            began: asyncio.Future = loop.create_future()
            if opening and rng.random() < 0.5:
                await unlink(swarm)

            async def each(_number, session):
                done.times.append(loop.time())
                stats = session.stats
                done.repairs, done.moves, done.bridges = stats.repairs, stats.moves, stats.bridges

            async def befall():
                session = await began
                await (routed(session) if opening else session.ready([]))
                done.times.append(loop.time())
                await asyncio.sleep(longest_s * (seed % 40 / 40 if opening else rng.random()))
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


async def unlink(swarm, after_s: float = 0.1) -> None:
    """All peers are met, and links closed as after a time without sessions."""
    await asyncio.sleep(after_s)
    for name in swarm._pool.peers():
        swarm._pool.drop(name)


async def routed(session, gone: str = "") -> None:
    """Until there are hops for all blocks, and one that died is not among them."""
    while not session.route or gone in {hop.peer_id for hop in session.route}:
        await asyncio.sleep(0.0002)


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


@pytest.mark.parametrize("seed", range(60))
def test_a_hop_that_hears_nobody_and_still_talks_is_left_once_its_pong_is_overdue(seed):
    """It says that the next hop is gone, which dies at the same time, and hears nothing of what is to come instead."""

    async def disturb(it, session, rng):
        deaf, gone = (hop.peer_id for hop in rng.choice(list(itertools.pairwise(session.route))))
        it.net.part([(name, deaf) for name in (*it.peers, "client") if name != deaf])
        await asyncio.sleep(rng.random())
        await it.kill(gone)

    done = disturbed(seed, disturb, DOUBLE)
    assert exact(done)
    assert done.repairs or done.moves
    assert done.stall_s <= IMPATIENT.ping_after_s + IMPATIENT.dead_after_s + 0.1


def cut_beside(it, session, rng, hops: set[str]) -> None:
    """Cut the way between one of `hops` and a neighbour, which may be the client, in one direction or both."""
    names = ["client", *(hop.peer_id for hop in session.route), "client"]
    there = rng.choice([pair for pair in itertools.pairwise(names) if hops & set(pair)])
    it.net.part(rng.choice([[there], [there[::-1]], [there, there[::-1]]]))


@pytest.mark.parametrize("seed", range(40))
def test_a_way_that_is_silently_gone_while_the_hops_are_opened_is_left_within_three_seconds(seed):
    """Before anybody connects, while they do, and when the prompt is on its way."""

    async def disturb(it, session, rng):
        cut_beside(it, session, rng, {hop.peer_id for hop in session.route})

    done = disturbed(seed, disturb, DOUBLE, count=4, longest_s=OPENING_S, opening=True)
    assert exact(done)
    assert done.stall_s <= 3.0


@pytest.mark.parametrize("seed", range(20))
def test_a_way_that_is_silently_gone_while_new_hops_are_opened_is_left_within_three_seconds(seed):
    async def disturb(it, session, rng):
        before = {hop.peer_id for hop in session.route}
        await it.kill(gone := rng.choice(session.route).peer_id)
        await routed(session, gone)
        await asyncio.sleep(seed % 20 / 20 * OPENING_S)
        cut_beside(it, session, rng, {hop.peer_id for hop in session.route} - before)

    done = disturbed(seed, disturb, count=8, longest_s=0.1)
    assert exact(done)
    assert done.stall_s <= 3.0


def test_a_peer_that_cannot_be_called_is_left_alone_until_it_can_and_then_keeps_nothing():
    """Its way is gone when the client calls it, and is there again before that call would have ended."""

    async def main():
        loop, names = asyncio.get_running_loop(), []
        async with world(3, DOUBLE) as it, it.client() as swarm:
            await unlink(swarm)

            async def cut(session):
                await routed(session)
                names.append(session.route[0].peer_id)
                it.net.part([("client", names[0])])

            begin = loop.time()
            assert await generate(swarm, PROMPT, 4, begun=lambda session: it.tasks.create_task(cut(session))) == FOUR
            late = loop.time()
            assert await generate(swarm, PROMPT, 4) == FOUR
            end = loop.time()
            assert names == [*swarm._met.strangers(swarm.view)]
            it.net.heal([("client", names[0])])
            await asyncio.sleep(1.0)
            assert not swarm._met.strangers(swarm.view)
            book = it.peers[names[0]].node.book
            assert (book.opened, len(book.leases)) == (1, 0)
            assert not swarm.knowledge().banned
        return late - begin, end - late

    first_s, second_s = run(main())
    assert 2.5 < first_s <= 3.0
    assert second_s < 0.3


@pytest.mark.parametrize("spans", [DOUBLE[:2], DOUBLE])
def test_peers_that_take_three_seconds_to_call_are_neither_left_nor_blamed(spans, monkeypatch):
    """Others are called too, and let us in no sooner; between hops that wait for one another the client carries."""

    async def connect(self, peer_id, addrs):
        await asyncio.sleep(3.0)
        return await usual(self, peer_id, addrs)

    usual = SimTransport.connect
    monkeypatch.setattr(SimTransport, "connect", connect)

    async def main():
        loop, stats = asyncio.get_running_loop(), []

        async def each(_number, session):
            stats.append((loop.time(), session.stats.repairs, session.stats.bridges))

        async with world(5, spans) as it, it.client() as swarm:
            await unlink(swarm, after_s=4.0)
            begin = loop.time()
            assert await generate(swarm, PROMPT, 4, each=each) == FOUR
            assert stats[0][0] - begin <= 3.0 + 2.5 + 0.2
            assert stats[-1][1:] == (0, 1)
            assert not swarm.knowledge().banned

    run(main())
