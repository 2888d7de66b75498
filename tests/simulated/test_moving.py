"""Sessions move away from peers that leave or have become slow, in virtual time: no error, no blame, same tokens."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest
from shoal.routing.health import Health

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, generate, world

PROMPT = [5, 17, 42, 99, 7, 3, 250, 1, 2, 90, 33]
SPANS = [(0, 3), (3, 6), (0, 3), (3, 6), (0, 2), (2, 6)]


def expected(prompt, count: int) -> list[int]:
    return toy.generate(prompt, N_BLOCKS, count)


@pytest.fixture
def blamed(monkeypatch):
    """Peers whose standing anything has harmed, in order."""
    found: list[str] = []
    monkeypatch.setattr(Health, "failure", lambda _self, peer_id, _now: found.append(peer_id))
    return found


def moved(seed, spans, disturb, count: int = 24, wait_s: float = 0.0):
    """Generate while `disturb(world, session, number)` works; tokens, (repairs, moves), seconds between tokens."""

    async def main():
        loop = asyncio.get_running_loop()
        times, stats = [loop.time()], []
        async with world(seed, spans) as it, it.client() as swarm, asyncio.TaskGroup() as tasks:

            async def each(number, session):
                times.append(loop.time())
                stats[:] = [session.stats.repairs, session.stats.moves]
                disturb(it, session, number, tasks)

            tokens = await generate(swarm, PROMPT, count, wait_s=wait_s, each=each)
            await asyncio.sleep(0.1)
            assert not any(peer.node.book.leases for peer in it.peers.values())
        return tokens, tuple(stats), [b - a for a, b in itertools.pairwise(times)]

    return run(main())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("place", [0, -1])
def test_a_hop_that_leaves_is_replaced_while_it_serves(seed, place, blamed):
    drained = []

    def disturb(it, session, number, tasks):
        if number == 6:
            stopping = tasks.create_task(it.stop(session.route[place].peer_id, drain_s=30.0))
            stopping.add_done_callback(lambda task: drained.append((number, task.result())))

    tokens, counts, stalls = moved(seed, SPANS, disturb)
    assert tokens == expected(PROMPT, 24)
    assert counts == (0, 1)
    assert drained == [(6, True)]
    assert not blamed
    assert max(stalls) < 0.15  # planned, connected and opened beside the old one: the user waits for the refill alone


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("place", [0, -1])
def test_a_hop_that_hangs_is_replaced_before_its_link_counts_as_dead(seed, place, blamed):
    def disturb(it, session, number, tasks):
        if number == 6:
            it.net.hang(session.route[place].peer_id)
        if number == 18:
            it.net.resume(*it.net.hung)

    tokens, counts, stalls = moved(seed, SPANS, disturb)
    assert tokens == expected(PROMPT, 24)
    assert counts == (0, 1)
    assert 1.0 < max(stalls) < 1.2


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("for_s", [0.5, 1.01, 1.02, 1.04])
def test_a_hop_that_hangs_for_a_moment_costs_no_more_than_that(seed, for_s, blamed):
    """It may come back while others are being asked, or while they take its place."""

    def disturb(it, session, number, tasks):
        if number == 6:
            it.net.hang(name := session.route[seed % 2].peer_id)
            asyncio.get_running_loop().call_later(for_s, it.net.resume, name)

    tokens, (repairs, moves), stalls = moved(seed, SPANS, disturb)
    assert tokens == expected(PROMPT, 24)
    assert (repairs, moves) in ((0, 0), (0, for_s > 1.0))
    assert max(stalls) < max(for_s, 1.0) + 0.2
    assert not blamed


def test_a_hop_that_leaves_at_the_prompt_is_replaced(blamed):
    async def main():
        async with world(4, SPANS) as it, it.client() as swarm, asyncio.TaskGroup() as tasks:
            generation = tasks.create_task(generate(swarm, PROMPT * 6, 8, chunk_tokens=4))
            while not any(peer.node.book.leases for peer in it.peers.values()):
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.03)
            leaving = [name for name, peer in it.peers.items() if peer.node.book.leases]
            assert await it.stop(leaving[0], drain_s=30.0)
            assert not generation.done()
            return await generation

    assert run(main()) == expected(PROMPT * 6, 8)
    assert not blamed


def test_the_only_holder_serves_its_sessions_to_their_end(blamed):
    drained = []

    def disturb(it, session, number, tasks):
        if number == 6:
            stopping = tasks.create_task(it.stop("p1", drain_s=30.0))
            stopping.add_done_callback(lambda task: drained.append(task.result()))

    tokens, counts, _ = moved(1, [(0, 3), (3, 6)], disturb, count=80)
    assert tokens == expected(PROMPT, 80)
    assert counts == (0, 0)
    assert drained == [True]


def test_sessions_move_once_somebody_holds_the_blocks(blamed):
    drained = []

    def disturb(it, session, number, tasks):
        if number == 6:
            stopping = tasks.create_task(it.stop("p1", drain_s=60.0))
            stopping.add_done_callback(lambda task: drained.append((number, task.result())))
        if number == 12:
            tasks.create_task(it.add_peer("new", 3, 6))

    tokens, counts, _ = moved(1, [(0, 3), (3, 6)], disturb, count=150)
    assert tokens == expected(PROMPT, 150)
    assert counts == (0, 1)
    assert drained == [(6, True)]
    assert not blamed


def test_a_new_hop_that_leaves_before_it_has_its_place_is_left_in_turn(blamed):
    """p0's place is taken by two; one of them goes while the other has not answered yet. A third is there."""
    drained = []

    async def leave_in_turn(it):
        it.net.extra_s["p2"] = 0.2
        first = asyncio.create_task(it.stop("p0", drain_s=30.0))
        while not (new := [name for name in ("p1", "p3") if it.peers[name].node.book.leases]):
            await asyncio.sleep(0.005)
        began = asyncio.get_running_loop().time()
        drained.append(await it.stop(new[0], drain_s=30.0))
        drained.append(await first)
        drained.append(asyncio.get_running_loop().time() - began < 5.0)
        it.net.extra_s.clear()

    def disturb(it, session, number, tasks):
        if number == 6:
            tasks.create_task(leave_in_turn(it))

    tokens, counts, _ = moved(1, [(0, 6), (0, 3), (3, 6), (0, 3)], disturb, count=60)
    assert tokens == expected(PROMPT, 60)
    assert counts == (0, 2)
    assert drained == [True, True, True]
    assert not blamed


def test_new_hops_that_refuse_or_die_leave_everything_as_it_is():
    def disturb(it, session, number, tasks):
        if number == 6:
            victim = session.route[-1].peer_id
            for name in {"p1", "p3", "p5"} - {victim}:
                it.peers[name].node.book.draining = True  # refuses, though the view says that it is online
            tasks.create_task(it.stop(victim, drain_s=30.0))

    tokens, counts, stalls = moved(2, SPANS, disturb, count=40)
    assert tokens == expected(PROMPT, 40)
    assert counts == (0, 0)
    assert max(stalls) < 0.15


def test_where_survivors_must_serve_otherwise_the_route_is_planned_anew(blamed):
    """p0 leaves; of the others only p1, which is in use, holds blocks 2 and 3."""

    def disturb(it, session, number, tasks):
        if number == 6:
            assert session.route[0].peer_id == "p0"
            tasks.create_task(it.stop("p0", drain_s=30.0))

    tokens, counts, _ = moved(3, [(0, 4), (2, 6), (0, 2)], disturb, wait_s=5.0)
    assert tokens == expected(PROMPT, 24)
    assert counts[1] == 0
    assert not blamed


@pytest.mark.parametrize("seed", range(4))
def test_no_request_of_three_hundred_fails_while_peers_come_and_go(seed):
    """Peers leave all the time, by turns, each coming back a second after it has left; clients notice nothing."""

    async def main():
        rng, over, left = random.Random(seed), asyncio.Event(), []
        async with world(seed, SPANS) as it:

            async def come_and_go():
                while not over.is_set():
                    name = rng.choice(sorted(it.peers))
                    left.append(await it.stop(name, drain_s=60.0))
                    await asyncio.sleep(0.2)
                    await it.add_peer(name, *SPANS[int(name[1:])])

            async def work(swarm, number):
                prompt = [number, *PROMPT]
                return [await generate(swarm, prompt, 12) == expected(prompt, 12) for _ in range(15)]

            async with it.client() as swarm, asyncio.TaskGroup() as tasks:
                going = tasks.create_task(come_and_go())
                works = [tasks.create_task(work(swarm, number)) for number in range(5)]
                await asyncio.wait(works)
                over.set()
                await going
            return [right for task in works for right in task.result()], left

    results, left = run(main())
    assert results == [True] * 75
    assert len(left) >= 5
    assert all(left)


# -- slow --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("place", [0, -1])
def test_a_hop_that_becomes_ten_times_slower_is_left_within_twenty_steps(seed, place, blamed):
    slow_at, routes = 20, []

    def disturb(it, session, number, tasks):
        routes.append([hop.peer_id for hop in session.route])
        if number == slow_at:
            it.peers[routes[-1][place]].engine.step_s *= 10

    tokens, counts, stalls = moved(seed, [(0, 3), (3, 6)] * 2, disturb, count=120)
    assert tokens == expected(PROMPT, 120)
    assert counts == (0, 1)
    assert not blamed
    slow = routes[slow_at - 1][place]
    assert slow not in routes[slow_at + 20]
    usual_s = sum(stalls[5:slow_at]) / (slow_at - 5)
    assert sum(stalls[slow_at:]) / len(stalls[slow_at:]) < usual_s / 0.7


def test_a_hop_that_is_slower_than_it_says_is_left():
    async def main():
        async with world(5, [(0, 3), (3, 6)]) as it:
            await it.add_peer("liar", 0, 6)
            it.peers["liar"].engine.step_s *= 100
            names = []
            async with it.client() as swarm:

                async def each(number, session):
                    names.append({hop.peer_id for hop in session.route})

                tokens = await generate(swarm, PROMPT, 60, each=each)
            return tokens, names

    tokens, names = run(main())
    assert tokens == expected(PROMPT, 60)
    assert "liar" in names[0]  # one hop is better than two, if it were as fast as it says
    assert "liar" not in names[20]


def test_where_nobody_is_faster_a_slow_hop_stays(blamed):
    def disturb(it, session, number, tasks):
        if number == 20:
            for peer in it.peers.values():
                peer.engine.step_s *= 10

    tokens, counts, _ = moved(2, [(0, 3), (3, 6)], disturb, count=60)
    assert tokens == expected(PROMPT, 60)
    assert counts == (0, 0)
    assert not blamed


def test_one_long_step_is_no_reason_to_move():
    def disturb(it, session, number, tasks):
        engine = it.peers[session.route[0].peer_id].engine
        engine.step_s = 0.4 if number == 30 else 0.004

    tokens, counts, _ = moved(2, SPANS, disturb, count=60)
    assert tokens == expected(PROMPT, 60)
    assert counts == (0, 0)


def test_where_all_hops_are_slower_at_once_nobody_is_left(blamed):
    """Others are idle and as fast as ever, but it is this client's whole route that has become slow."""

    def disturb(it, session, number, tasks):
        if number == 20:
            for hop in session.route:
                it.peers[hop.peer_id].engine.step_s *= 10

    tokens, counts, _ = moved(2, [(0, 3), (3, 6)] * 2, disturb, count=60)
    assert tokens == expected(PROMPT, 60)
    assert counts == (0, 0)
    assert not blamed
