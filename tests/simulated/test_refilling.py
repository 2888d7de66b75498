"""A hop is lost while others are being refilled: only what was not filled yet is opened anew, the rest is kept."""

from __future__ import annotations

import asyncio

import pytest
from shoal.client.options import SessionOptions
from shoal.peer.wire import Hidden, Open

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.network import messages_in
from tests.sim.swarm import N_BLOCKS, states, world

PROMPT = [(37 * i + i // 7) % toy.VOCAB for i in range(60)]
COUNT = 12
SPANS = [(0, 2), (2, 4), (4, 6)]


def refilled(seed: int, first: tuple[int, ...], second: int, after_s: float):
    """Generate over three hops. Those at the places `first` die, and `after_s` after the first replay to one that
    takes their place, so does the hop at place `second`, new or old. Tokens, which places got new leases by then and
    which ones later, and the inputs that the client was asked for again."""
    opened: list[tuple[float, int]] = []
    recalled: list[tuple[int, int]] = []
    second_at: list[float] = []

    async def main():
        async with world(seed, [*SPANS, *SPANS, *SPANS]) as it, it.client() as swarm:
            for peer in it.peers.values():
                peer.engine.token_s = 0.01  # so that a refill takes a while
            tokens, loop, dead = list(PROMPT), asyncio.get_running_loop(), []

            async def strike(session):
                await asyncio.sleep(after_s)
                second_at.append(loop.now)
                await it.kill(session.route[second].peer_id)

            def recall(start, stop):
                recalled.append((start, stop))
                return states(tokens[start:stop])

            async with swarm.session(SessionOptions(len(PROMPT) + COUNT, wait_s=10.0)) as session:

                def hear(_source, target, data):
                    for message in messages_in(data):
                        if isinstance(message, Open):
                            opened.append((loop.now, message.start // 2))
                        elif isinstance(message, Hidden) and message.replay and dead and not second_at:
                            second_at.append(0.0)
                            it.tasks.create_task(strike(session))

                it.net.listeners.append(hear)
                session.recall_with(recall)
                new = list(PROMPT)
                for number in range(COUNT):
                    if number == 6:
                        assert len(session.route) == 3
                        dead += [session.route[place].peer_id for place in first]
                        for name in dead:
                            await it.kill(name)
                    out = await session.step(states(new))
                    new = [toy.choose(out[-1].tolist())]
                    tokens += new
            return tokens[len(PROMPT) :]

    tokens = run(main())
    assert len(second_at) == 2
    began = opened[3][0]
    by_then = [place for at, place in opened if began <= at <= second_at[1]]
    return tokens, by_then, sorted({place for at, place in opened if at > second_at[1]}), recalled


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("after_s", [0.01, 0.1, 0.4])
def test_the_hop_behind_one_that_is_being_refilled_dies(seed, after_s):
    """The new one holds too little yet to refill its successor; the one before both of them holds all."""
    tokens, by_then, later, recalled = refilled(seed, (1,), 2, after_s)
    assert tokens == toy.generate(PROMPT, N_BLOCKS, COUNT)
    assert (by_then, later) == ([1], [1, 2])
    assert not recalled


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("after_s", [0.01, 0.1, 0.4])
def test_the_hop_that_was_to_refill_a_new_one_dies(seed, after_s):
    """What comes behind both was never lost, and stays."""
    tokens, by_then, later, _ = refilled(seed, (0, 1), 0, after_s)
    assert tokens == toy.generate(PROMPT, N_BLOCKS, COUNT)
    assert ({*by_then}, later) == ({0, 1}, [0, 1])


@pytest.mark.parametrize("seed", range(3))
def test_a_hop_that_leaves_while_another_is_being_refilled_is_replaced_afterwards(seed):
    """Asked to refill its successor now, the new one would have to refuse, and all would begin anew."""
    recalled: list[tuple[int, int]] = []
    stats: list[tuple[int, int]] = []

    async def main():
        async with world(seed, [*SPANS, *SPANS, *SPANS]) as it, it.client() as swarm:
            for peer in it.peers.values():
                peer.engine.token_s = 0.01
            tokens, told = list(PROMPT), []

            def recall(start, stop):
                recalled.append((start, stop))
                return states(tokens[start:stop])

            async with swarm.session(SessionOptions(len(PROMPT) + COUNT, wait_s=10.0)) as session:

                def hear(_source, target, data):
                    replays = any(isinstance(message, Hidden) and message.replay for message in messages_in(data))
                    if replays and not told:
                        told.append(it.tasks.create_task(it.stop(session.route[2].peer_id, drain_s=30.0)))

                session.recall_with(recall)
                new = list(PROMPT)
                for number in range(COUNT):
                    if number == 6:
                        it.net.listeners.append(hear)
                        await it.kill(session.route[1].peer_id)
                    out = await session.step(states(new))
                    new = [toy.choose(out[-1].tolist())]
                    tokens += new
                stats.append((session.stats.repairs, session.stats.moves))
                assert await told[0]
            return tokens[len(PROMPT) :]

    assert run(main()) == toy.generate(PROMPT, N_BLOCKS, COUNT)
    assert (stats, recalled) == ([(1, 1)], [])
