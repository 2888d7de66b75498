"""What a peer that looks for a place measures: in virtual time, among peers that are near, far, hung and not there."""

from __future__ import annotations

import asyncio
import random

from shoal.peer.choose import look_up
from shoal.peer.greet import SURVEY_S, Surveyor
from shoal.peer.mover import Habit, Mover

from tests.sim.clock import run
from tests.sim.network import SimTransport
from tests.sim.swarm import N_BLOCKS, SimDirectory, world

SPANS = [(0, 3), (3, 6)] * 2


def surveyor(it, name: str) -> Surveyor:
    return Surveyor(SimTransport(it.net, name), random.Random(it.seed), asyncio.get_running_loop().time)


async def looked(it, name: str):
    return await look_up(SimDirectory(it.table, name, it.wall), name, "r1", N_BLOCKS, it.wall())


def test_near_and_far_peers_are_told_apart_and_nobody_keeps_a_start_waiting():
    """Of four one hangs and one is dead; the other two answer, from where they are."""

    async def main():
        async with world(1, SPANS) as it:
            it.net.extra_s["p1"] = 0.1
            it.net.hang("p2")
            it.net.kill("p3")
            began = asyncio.get_running_loop().time()
            view = await looked(it, "me")
            found = await surveyor(it, "me").survey(view, {})
            took_s = asyncio.get_running_loop().time() - began
            for link in it.net.streams_of("me"):
                assert link.is_closed
            it.net.resume("p2")
            return found, took_s

    found, took_s = run(main())
    assert sorted(found) == ["p0", "p1"]
    assert 0.01 <= found["p0"] < 0.02
    assert 0.2 < found["p1"] < 0.23
    assert took_s < SURVEY_S + 0.1
    assert (found, took_s) == run(main())


def test_neither_oneself_nor_who_is_known_is_asked():
    async def main():
        async with world(1, SPANS) as it:
            it.net.trace.clear()
            view = await looked(it, "me")
            found = await surveyor(it, "p0").survey(view, {"p1": 0.5})
            return found, {target for _, source, target, _ in it.net.trace if source == "p0"}

    found, asked = run(main())
    assert asked == {"p2", "p3"}
    assert sorted(found) == ["p1", "p2", "p3"]
    assert found["p1"] == 0.5


def test_a_peer_moves_where_its_neighbours_are_near():
    """Three thirds; the last two have a holder each. One of three that hold the first goes beside whom it is near."""

    async def main(near: str):
        async with world(3, [(0, 2)] * 3 + [(2, 4), (4, 6)]) as it:
            it.net.extra_s.update(dict.fromkeys({"p1", "p2", "p3", "p4"} - {near}, 0.05))
            directory = SimDirectory(it.table, "p0", it.wall)
            habit = Habit(30.0, 10.0, random.Random(it.seed), it.wall)
            survey = surveyor(it, "p0").survey
            move = await Mover(directory, it.peers["p0"].announcer, N_BLOCKS, habit, survey=survey).look()
            return move.start

    assert run(main("p3")) == 4
    assert run(main("p4")) == 2
