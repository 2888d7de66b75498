"""Peers that move where they are needed, in virtual time: a badly placed swarm heals under running generations."""

from __future__ import annotations

import asyncio
import random

import pytest
from shoal.blocks.errors import BlocksError
from shoal.dht.errors import JoinError
from shoal.peer import mover as moving
from shoal.peer.mover import Habit, Mover
from shoal.routing.announcement import decode

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, SimDirectory, generate, world

PROMPT = [5, 17, 42, 99, 7, 3]
LOADING_S = 10.0


def mover_of(it, name: str, period_s: float = 30.0, fetch=None) -> Mover:
    habit = Habit(period_s, LOADING_S, random.Random(f"{it.seed} {name}"), it.wall)
    return Mover(SimDirectory(it.table, name, it.wall), it.peers[name].announcer, N_BLOCKS, habit, fetch)


async def live(it, name: str, moves: list[str]) -> None:
    """What `peer/serve.py` does: serve, look, hand sessions over, load, serve elsewhere."""
    while True:
        move = await mover_of(it, name).run()
        moves.append(name)
        peer = it.peers[name]
        peer.node.leave()
        await peer.node.drain(10.0)
        it.net.servers.pop(name, None)
        peer.task.cancel()
        await asyncio.sleep(LOADING_S)
        await it.add_peer(name, move.start, move.stop)


def coverage(it) -> list[int]:
    return [sum(p.engine.start <= block < p.engine.stop for p in it.peers.values()) for block in range(N_BLOCKS)]


@pytest.mark.parametrize("seed", range(2))
def test_a_badly_placed_swarm_heals_without_a_failed_generation(seed):
    """Twelve peers, ten of them on the first half. Clients generate all the time; tokens stay exact."""
    spans = [(0, 3)] * 10 + [(3, 6)] * 2
    moves: list[str] = []
    done, expected = 0, toy.generate(PROMPT, N_BLOCKS, 40)

    async def use(swarm, until: float):
        nonlocal done
        while asyncio.get_running_loop().time() < until:
            assert await generate(swarm, PROMPT, 40, wait_s=1.0) == expected
            done += 1
            await asyncio.sleep(4)

    async def main():
        async with world(seed, spans) as it, it.client("c0") as one, it.client("c1") as two:
            lives = [it.tasks.create_task(live(it, name, moves)) for name in list(it.peers)]
            until = asyncio.get_running_loop().time() + 300
            await asyncio.gather(use(one, until), use(two, until))
            for task in lives:
                task.cancel()
            return coverage(it)

    found = run(main())
    assert min(found) >= 5  # of six that an even split gives
    assert 3 <= len(moves) <= 6
    assert done > 60


def test_two_that_look_at_the_same_moment_do_not_both_go(monkeypatch):
    async def main():
        async with world(1, [(0, 3), (0, 3), (3, 6)]) as it:
            await it.kill("p2")
            it.table.pop("p2")
            return await asyncio.gather(*(mover_of(it, name).look() for name in ("p0", "p1"))), it.table

    monkeypatch.setattr(moving, "SETTLED_S", 0.5)
    (first, second), table = run(main())
    assert first is not None
    assert second is None
    assert {name: decode(record, N_BLOCKS).state for name, record in table.items()} == {"p0": "joining", "p1": "online"}


def test_a_directory_that_fails_in_the_middle_leaves_the_peer_where_it_is():
    """It has said already that it goes; since it does not, it is soon announced as what it is."""

    async def main():
        async with world(1, [(0, 3), (0, 3), (0, 3), (3, 6)]) as it:
            mover = mover_of(it, "p0", period_s=1.0)
            looks = SimDirectory.lookup

            async def fails(directory, within_s=None):
                if decode(it.table["p0"], N_BLOCKS).state == "joining":
                    raise JoinError("nobody answers")
                return await looks(directory, within_s)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(SimDirectory, "lookup", fails)
                with pytest.raises(JoinError):
                    await mover.look()
            said = decode(it.table["p0"], N_BLOCKS)
            await asyncio.sleep(5)
            return said, decode(it.table["p0"], N_BLOCKS)

    said, then = run(main())
    assert (said.state, said.start) == ("joining", 3)
    assert (then.state, then.start) == ("online", 0)


def test_who_has_no_substitute_stays():
    async def main():
        async with world(1, [(0, 6), (0, 3)]) as it:
            return await mover_of(it, "p0").look()

    assert run(main()) is None


def test_what_is_moved_to_is_fetched_before_it_is_said_and_only_if_it_still_pays():
    """A minute's download: the peer serves and is counted where it is; then it looks again, and goes or stays."""

    async def main(others_come: bool):
        async with world(1, [(0, 3), (0, 3), (0, 3), (3, 6)]) as it:
            announcer, states = it.peers["p0"].announcer, []

            async def fetch(blocks: range) -> None:
                states.append((blocks, announcer.announcement().state, announcer.moving))
                await asyncio.sleep(60)
                states.append((blocks, announcer.announcement().state, announcer.moving))
                for number in range(3 * others_come):
                    await it.add_peer(f"q{number}", 3, 6)

            return await mover_of(it, "p0", fetch=fetch).look(), states

    for others_come in (False, True):
        move, states = run(main(others_come))
        assert states == [(range(3, 6), "online", None)] * 2
        assert (move is None) is others_come


def test_blocks_that_cannot_be_had_are_not_moved_to():
    async def main():
        async with world(1, [(0, 3), (0, 3), (0, 3), (3, 6)]) as it:

            async def fetch(_blocks: range) -> None:
                raise BlocksError("the hub is away")

            return await mover_of(it, "p0", fetch=fetch).look(), it.peers["p0"].announcer.moving

    assert run(main()) == (None, None)
