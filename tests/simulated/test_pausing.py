"""Volunteers pause and resume in virtual time: no session fails, no token changes, who resumes serves at once."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager

import pytest
from shoal.peer.ailing import FIRST_S, rest_after_faults
from shoal.peer.announcer import Announcer, Facts
from shoal.peer.duty import Duty
from shoal.peer.errors import NoRouteError
from shoal.peer.node import Node, NodeConfig
from shoal.peer.pausing import Outcome, Pausing

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.network import SimTransport
from tests.sim.swarm import N_BLOCKS, SimDirectory, generate, world

PROMPT = [5, 17, 42, 99, 7, 3, 250, 1, 2, 90, 33]
SESSIONS = 12


def expected(count: int) -> list[int]:
    return toy.generate(PROMPT, N_BLOCKS, count)


@asynccontextmanager
async def volunteers(it):
    """A `Pausing` for each peer of a world, running."""
    clock = asyncio.get_running_loop().time
    pausings = {name: Pausing(10.0, clock) for name in it.peers}
    tasks = []
    for name, pausing in pausings.items():
        peer = it.peers[name]
        pausing.attach(peer.node)
        tasks.append(it.tasks.create_task(pausing.run(peer.node, peer.announcer)))
    try:
        yield pausings
    finally:
        for task in tasks:
            task.cancel()


async def reading(_number, _session):
    await asyncio.sleep(0.1)


@pytest.mark.parametrize("seed", range(25))
def test_three_hundred_sessions_while_volunteers_come_and_go(seed):
    """25 runs of 12 sessions: 0 failures. Of the holders of each block one serves at any time, others pause at will."""

    async def main():
        rng = random.Random(seed)
        spans = [(0, 6), (0, 6), (0, 3), (3, 6), (0, 6)]
        async with world(seed, spans) as it, volunteers(it) as pausings, it.client() as swarm:

            async def whims(name):
                while True:
                    await asyncio.sleep(rng.uniform(0.0, 2.0))
                    pausings[name].hold("volunteer", "a whim", rng.choice([0.0, 0.5, 10.0]))
                    await asyncio.sleep(rng.uniform(0.0, 2.0))
                    pausings[name].release("volunteer")

            moods = [it.tasks.create_task(whims(f"p{n}")) for n in range(4)]
            async with asyncio.TaskGroup() as tasks:
                runs = [tasks.create_task(generate(swarm, PROMPT, 24, wait_s=30.0)) for _ in range(SESSIONS)]
            for mood in moods:
                mood.cancel()
            moved = sum(pausing.outcome.moved + pausing.outcome.ended for pausing in pausings.values())
            return [task.result() for task in runs], moved

    tokens, _ = run(main())
    assert tokens == [expected(24)] * SESSIONS


def test_running_sessions_move_and_the_outcome_is_told():
    async def main():
        async with world(3, [(0, 6)]) as it, volunteers(it) as pausings, it.client() as swarm:
            async with asyncio.TaskGroup() as tasks:
                runs = [tasks.create_task(generate(swarm, PROMPT, 60, each=reading)) for _ in range(4)]
                await asyncio.sleep(0.2)
                await it.add_peer("p1", 0, 6)
                await asyncio.sleep(2.0)  # the client learns of it
                pausings["p0"].hold("volunteer", "a game")
                refused = it.peers["p0"].node.book.paused
                await pausings["p0"].settled.wait()
                states = it.peers["p0"].announcer.state, it.peers["p1"].announcer.state
            return [task.result() for task in runs], refused, states, pausings["p0"].outcome

    tokens, refused, states, outcome = run(main())
    assert tokens == [expected(60)] * 4
    assert refused
    assert states == ("paused", "online")
    assert (outcome.moved, outcome.ended) == (4, 0)
    assert 0.0 <= outcome.took_s < 5.0


def test_a_session_without_another_place_is_ended_and_told_why_and_goes_on_after_the_resume():
    async def main():
        async with world(3, [(0, 6)]) as it, volunteers(it) as pausings, it.client() as swarm:
            pausing = pausings["p0"]

            async def each(number, session):
                await reading(number, session)
                if number == 5:
                    pausing.hold("volunteer", "a game", drain_s=0.5)
                    it.tasks.create_task(back())

            async def back():
                await pausing.settled.wait()
                await asyncio.sleep(3.0)
                pausing.release("volunteer")

            tokens = await generate(swarm, PROMPT, 12, wait_s=30.0, each=each)
            return tokens, pausing.outcome

    tokens, outcome = run(main())
    assert tokens == expected(12)
    assert (outcome.moved, outcome.ended) == (0, 1)


def test_a_paused_peer_serves_again_the_moment_it_is_resumed():
    async def main():
        loop = asyncio.get_running_loop()
        async with world(3, [(0, 6)]) as it, volunteers(it) as pausings, it.client() as swarm:
            pausings["p0"].hold("volunteer", "a game")
            await pausings["p0"].settled.wait()
            await swarm.refresh()
            with pytest.raises(NoRouteError, match="paused"):
                await generate(swarm, PROMPT, 1)
            began = loop.time()
            pausings["p0"].release("volunteer")
            await pausings["p0"].settled.wait()
            await swarm.refresh()
            return await generate(swarm, PROMPT, 4), loop.time() - began

    tokens, took_s = run(main())
    assert tokens == expected(4)
    assert took_s < 1.0


def test_it_serves_only_when_nobody_has_a_reason_against_it_left():
    async def main():
        async with world(3, [(0, 6)]) as it, volunteers(it) as pausings:
            pausing, book, seen = pausings["p0"], it.peers["p0"].node.book, []
            for change in ("volunteer", "machine", "-volunteer", "-machine", "-machine"):
                if change.startswith("-"):
                    pausing.release(change[1:])
                else:
                    pausing.hold(change, f"because of the {change}")
                await pausing.settled.wait()
                seen.append((book.paused, list(pausing.reasons)))
            return seen

    assert run(main()) == [
        (True, ["volunteer"]), (True, ["volunteer", "machine"]), (True, ["machine"]), (False, []), (False, []),
    ]  # fmt: skip


def test_a_pause_outlives_the_node_that_it_began_with():
    """A peer that rejoins, or moves to other blocks, stays paused; what was under way is settled by the new node."""

    async def main():
        async with world(3, [(0, 6), (0, 6)]) as it:
            old, new = it.peers["p0"], it.peers["p1"]
            pausing = Pausing(10.0, asyncio.get_running_loop().time)
            pausing.attach(old.node)
            pausing.hold("volunteer", "a game")  # nobody performs it: the network is gone
            unsettled = not pausing.settled.is_set()
            pausing.attach(new.node)
            task = it.tasks.create_task(pausing.run(new.node, new.announcer))
            await pausing.settled.wait()
            task.cancel()
            return unsettled, new.node.book.paused, new.announcer.state, pausing.outcome

    unsettled, paused, state, outcome = run(main())
    assert (unsettled, paused, state) == (True, True, "paused")
    assert outcome == Outcome(0, 0, outcome.took_s)


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_an_engine_that_has_to_rest_works_that_share_of_the_time_and_says_so(share):
    async def main():
        loop = asyncio.get_running_loop()
        async with world(3, [(0, 6)]) as it, it.client() as swarm:
            duty = Duty(100.0)
            duty.share = share
            resting = it.peers["p0"]
            config = NodeConfig(resting.node.config.offer, "test", clock=loop.time, duty=duty)
            async with Node(config, resting.engine, SimTransport(it.net, "p9")) as node:
                facts = Facts("p9", "r1", "none", "float32", 0.001, 0.002, (), "1", "")
                said = Announcer(SimDirectory(it.table, "p9", it.wall), node, facts).announcement()
            resting.node.steps._duty = duty
            began = loop.time()
            tokens = await asyncio.gather(*(generate(swarm, PROMPT, 40) for _ in range(3)))
            return tokens, resting.node.tally.busy_s / (loop.time() - began), said

    tokens, worked, said = run(main())
    assert tokens == [expected(40)] * 3
    assert 0.3 * share < worked < 1.1 * share
    assert (said.decode_s, said.prefill_s) == (pytest.approx(0.001 / share), pytest.approx(0.002 / share))


def test_a_peer_whose_device_fails_steps_is_out_of_the_swarm_for_a_while_and_longer_if_it_goes_on():
    """Its memory is full: the session goes on elsewhere, and until the peer has rested nobody else tries it."""

    async def main():
        async with world(4, [(0, 6), (0, 6)]) as it, volunteers(it) as pausings, it.client() as swarm:
            ailing, loop, rests = it.peers["p0"], asyncio.get_running_loop(), []
            watch = it.tasks.create_task(rest_after_faults(ailing.node.steps.faulted, pausings["p0"]))
            told = []
            for _ in range(2):
                await swarm.refresh()
                ailing.engine.fault_next = True
                while not pausings["p0"].reasons:
                    await asyncio.sleep(1)
                    told.append(await generate(swarm, PROMPT, 20, wait_s=20.0))
                began, opened = loop.time(), ailing.node.book.opened
                await swarm.refresh()
                told += [await generate(swarm, PROMPT, 20) for _ in range(8)]
                assert ailing.node.book.opened == opened
                assert ailing.announcer.announcement().state != "online"
                while pausings["p0"].reasons:
                    await asyncio.sleep(0.1)
                rests.append(loop.time() - began)
                await asyncio.sleep(60)  # clients forget as well
            state = ailing.announcer.announcement().state
            watch.cancel()
            return told, rests, state

    told, rests, state = run(main())
    assert all(tokens == expected(20) for tokens in told)
    assert rests == pytest.approx([FIRST_S, 2 * FIRST_S], abs=2.0)
    assert state == "online"
