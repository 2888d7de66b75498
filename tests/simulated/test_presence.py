"""Who is there, by a client's own links: a killed peer is seen long before its record expires."""

from __future__ import annotations

import asyncio

import pytest
from shoal.client.options import SessionOptions
from shoal.peer.errors import NoRouteError

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, generate, states, world

SPANS = [(0, 6), (0, 3), (3, 6)]
NAMES = ("p0", "p1", "p2")


def seen(swarm):
    return {name: swarm.presence.of(name) for name in NAMES}


def test_an_onlooker_sees_a_killed_peer_and_its_return():
    async def main():
        told = []
        async with world(3, SPANS) as it, it.client() as swarm:
            await asyncio.sleep(60)  # links that nobody needs are closed by then
            told.append(seen(swarm))
            with swarm.presence.watching():
                await asyncio.sleep(40)
                told.append(seen(swarm))
                await it.kill("p1")
                await asyncio.sleep(4)
                told.append((seen(swarm), swarm.presence.gone(), [peer.peer_id for peer in swarm.view.peers]))
                await it.start("p1")
                await asyncio.sleep(3)
                told.append((seen(swarm), swarm.presence.gone()))
        return told

    idle, watched, (killed, gone, announced), back = run(main())
    assert idle == dict.fromkeys(NAMES, "unknown")
    assert watched == dict.fromkeys(NAMES, "here")
    assert killed == {"p0": "here", "p1": "lost", "p2": "here"}
    assert gone == {"p1"}
    assert announced == list(NAMES)  # its record is still there
    assert back == (dict.fromkeys(NAMES, "here"), frozenset())


def test_who_never_let_us_in_is_not_called_lost():
    async def main():
        async with world(4, SPANS) as it:
            it.net.kill("p2")
            async with it.client() as swarm:
                with swarm.presence.watching():
                    await asyncio.sleep(5)
                    return seen(swarm), swarm.presence.gone()

    assert run(main()) == ({"p0": "here", "p1": "here", "p2": "unreached"}, frozenset())


def test_a_peer_that_one_look_up_missed_is_still_seen_and_can_be_lost():
    async def main():
        async with world(7, SPANS) as it, it.client() as swarm:
            with swarm.presence.watching():
                await asyncio.sleep(3)
                record = it.table.pop("p1")
                await asyncio.sleep(2)
                missed = [peer.peer_id for peer in swarm.view.peers]
                it.table["p1"] = record
                await asyncio.sleep(2)
                back = seen(swarm)
                await it.kill("p1")
                await asyncio.sleep(4)
                return missed, back, seen(swarm)

    missed, back, killed = run(main())
    assert missed == ["p0", "p2"]
    assert back == dict.fromkeys(NAMES, "here")
    assert killed == {"p0": "here", "p1": "lost", "p2": "here"}


def test_who_was_here_and_cannot_be_reached_again_is_lost_too():
    async def main():
        async with world(6, SPANS) as it, it.client() as swarm:
            await asyncio.sleep(60)  # links that nobody needs are closed by then
            await it.kill("p0")
            await it.kill("p1")
            before = seen(swarm)
            with pytest.raises(NoRouteError):
                await generate(swarm, [1, 2, 3], 4)
            return before, seen(swarm), swarm.view.missing(), swarm.presence.there(swarm.view).missing()

    before, after, announced, missing = run(main())
    assert before == dict.fromkeys(NAMES, "unknown")
    assert (after["p0"], after["p1"]) == ("lost", "lost")
    assert announced == []
    assert missing == [0, 1, 2]


def test_links_are_closed_again_when_nobody_looks_on():
    async def main():
        async with world(5, SPANS) as it, it.client() as swarm:
            with swarm.presence.watching():
                await asyncio.sleep(100)
                during = seen(swarm)
            await generate(swarm, [1, 2, 3], 4)
            await asyncio.sleep(60)
            return during, seen(swarm), swarm.presence.watched

    during, after, watched = run(main())
    assert during == dict.fromkeys(NAMES, "here")
    assert after == dict.fromkeys(NAMES, "unknown")
    assert watched == set()


def test_a_record_that_one_look_missed_keeps_no_later_session_waiting():
    """The link stood all the while, so that nothing more was to be heard of it."""

    async def main():
        async with (
            world(3, [(0, 2), (2, 4), (4, 6)]) as it,
            it.client() as swarm,
            swarm.session(SessionOptions(max_tokens=64)) as session,
        ):
            await session.step(states([1, 2, 3]))  # its links are in use
            record = it.table.pop("p1")
            await swarm.refresh()
            it.table["p1"] = record
            await swarm.refresh()
            async with asyncio.timeout(20):
                return await generate(swarm, [1, 2, 3], 4)

    assert run(main()) == toy.generate([1, 2, 3], N_BLOCKS, 4)
