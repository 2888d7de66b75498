"""More rows of the failure catalogue in virtual time: bad lines, partitions, whole blocks lost, clients and peers that
go and come, ghosts, liars, other versions (docs/faults.md lists them all)."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from shoal.client.lookout import Lookout
from shoal.dht.directory import Nodes
from shoal.peer.book import Limits
from shoal.peer.errors import NoRouteError
from shoal.peer.wire import VERSION, Hello, encode
from shoal.routing.announcement import decode

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, generate, world
from tests.sim.trouble import haunt

PROMPT = [5, 17, 42, 99, 7, 3, 250, 1, 2, 90, 33]
EXPECTED = toy.generate(PROMPT, N_BLOCKS, 40)
SINGLE = [(0, 2), (2, 4), (4, 6)]
DOUBLE = [(0, 3), (3, 6), (0, 3), (3, 6)]
TRIPLE = [(0, 2), (0, 3), (0, 3), (2, 4), (3, 6), (3, 6), (4, 6)]


def free(it) -> dict[str, int]:
    """Pages in use, by peer."""
    return {name: peer.engine.n_pages - peer.node.book.pages.free for name, peer in it.peers.items()}


# -- lines -------------------------------------------------------------------------------------------------------------


def test_5_percent_loss_and_200_ms_of_jitter_fail_nobody_and_ban_nobody():
    """300 generations by 10 clients. A peer that is merely far and shaky keeps its good name."""

    async def one(it, number):
        async with it.client(f"client{number}") as swarm:
            tokens = [await generate(swarm, PROMPT, 6, wait_s=5.0) for _ in range(30)]
            knowledge = swarm.knowledge()
            return tokens, knowledge.banned, knowledge.penalties

    async def main():
        async with world(3, DOUBLE) as it:
            it.net.loss, it.net.jitter_s = 0.05, 0.2
            async with asyncio.TaskGroup() as tasks:
                runs = [tasks.create_task(one(it, number)) for number in range(10)]
            return [task.result() for task in runs]

    for tokens, banned, penalties in run(main()):
        assert tokens == [EXPECTED[:6]] * 30
        assert not banned
        assert not penalties


@pytest.mark.parametrize("seed", range(20))
def test_a_partition_is_an_error_that_names_the_blocks_and_ends_within_ten_seconds_of_healing(seed):
    """Half of the peers are away from the client, which is in mid-generation; a second client only wants an answer."""

    async def main():
        loop, rng = asyncio.get_running_loop(), random.Random(seed)
        async with world(seed, DOUBLE) as it, it.client() as swarm, asyncio.TaskGroup() as tasks:
            begun = asyncio.Event()

            async def each(number, _session):
                begun.set()

            patient = tasks.create_task(generate(swarm, PROMPT, 30, wait_s=120.0, each=each))
            await begun.wait()
            await asyncio.sleep(rng.uniform(0.0, 0.3))
            away = [name for name in it.peers if it.stock[name].start == (0, 3)[seed % 2]]
            ways = [way for name in away for way in (("client", name), (name, "client"))]
            it.net.part(ways)
            with pytest.raises(NoRouteError) as caught:
                await generate(swarm, PROMPT, 4, wait_s=1.0)
            await asyncio.sleep(rng.uniform(0.0, 20.0))
            healed = loop.time()
            it.net.heal(ways)
            tokens = await patient
            return caught.value.missing, tokens, loop.time() - healed

    missing, tokens, after_s = run(main())
    assert missing == ((0, 1, 2), (3, 4, 5))[seed % 2]
    assert tokens == EXPECTED[:30]
    assert after_s <= 10.0 + 30 * 0.05  # and the tokens that were still to come


@pytest.mark.parametrize("seed", range(20))
def test_every_holder_of_a_block_lost_and_back_is_resumed_within_ten_seconds(seed):
    async def main():
        loop, rng = asyncio.get_running_loop(), random.Random(seed)
        back = 0.0
        async with world(seed, DOUBLE) as it, it.client() as swarm:
            times = []

            async def each(number, _session):
                nonlocal back
                times.append(loop.time())
                if number == 5:
                    lost = [name for name in it.peers if it.stock[name].stop == N_BLOCKS]
                    for name in lost:
                        await it.kill(name)
                    await asyncio.sleep(rng.uniform(0.1, 40.0))
                    back = loop.time()
                    await it.start(lost[0])

            tokens = await generate(swarm, PROMPT, 16, wait_s=60.0, each=each)
            return tokens, min(at for at in times if at > back) - back

    tokens, resumed_s = run(main())
    assert tokens == EXPECTED[:16]
    assert resumed_s <= 10.0


@pytest.mark.parametrize("seed", range(10))
def test_every_holder_of_a_block_lost_for_good_is_an_error_that_names_it_and_never_a_stop(seed):
    async def main():
        async with world(seed, SINGLE) as it, it.client() as swarm:

            async def each(number, _session):
                if number == 5:
                    await it.kill(f"p{seed % 3}")

            with pytest.raises(NoRouteError) as caught:
                await generate(swarm, PROMPT, 16, wait_s=float(seed), each=each)
            return caught.value

    error = run(main())
    assert error.missing == ((0, 1), (2, 3), (4, 5))[seed % 3]
    assert f"{error.missing[0]}" in str(error)


# -- clients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("silently", "within_s"), [(False, 10.0), (True, 30.0)])
def test_a_client_that_is_gone_gives_everything_back(seed, silently, within_s):
    """Its machine resets its links; or nothing of it is ever heard again, not even that (half-open)."""

    async def main():
        loop = asyncio.get_running_loop()
        async with world(seed, DOUBLE) as it:

            async def lost():
                async with it.client("gone") as swarm, asyncio.TaskGroup() as tasks:
                    for _ in range(3):
                        tasks.create_task(generate(swarm, PROMPT, 500))

            task = it.tasks.create_task(lost())
            await asyncio.sleep(random.Random(seed).uniform(0.05, 1.0))
            if silently:
                it.net.part([way for name in it.peers for way in (("gone", name), (name, "gone"))])
            it.net.kill("gone")
            task.cancel()
            gone = loop.time()
            while any(free(it).values()) or any(links_of(peer, "gone") for peer in it.peers.values()):
                await asyncio.sleep(0.5)
            return loop.time() - gone

    assert run(main()) <= within_s


def links_of(peer, client):
    return [channel for channel in peer.node._links.values() if channel.remote == client]


@pytest.mark.parametrize("seed", range(20))
def test_a_clients_own_network_daemon_restarts(seed):
    """All its links are gone at once, and for a while it can open none."""

    async def main():
        rng = random.Random(seed)
        async with world(seed, DOUBLE) as it, it.client() as swarm, asyncio.TaskGroup() as tasks:

            async def restart():
                await asyncio.sleep(rng.uniform(0.02, 0.8))
                it.net.reset("client")
                it.net.offline.add("client")
                await asyncio.sleep(rng.uniform(0.05, 2.0))
                it.net.offline.discard("client")

            tasks.create_task(restart())
            return await generate(swarm, PROMPT, 30, wait_s=30.0)

    assert run(main()) == EXPECTED[:30]


# -- peers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_a_peer_that_restarts_under_its_name_never_answers_from_the_kv_it_has_not(seed):
    """It is back before or after its client notices; only it holds its blocks."""

    async def main():
        rng = random.Random(seed)
        async with world(seed, SINGLE) as it, it.client() as swarm, asyncio.TaskGroup() as tasks:

            async def restart():
                await asyncio.sleep(rng.uniform(0.02, 0.6))
                for _ in range(rng.choice([1, 2])):
                    name = rng.choice(list(it.peers))
                    await it.kill(name)
                    await asyncio.sleep(rng.choice([0.0, 0.001, 0.02, 1.0]))
                    await it.start(name)

            tasks.create_task(restart())
            return await generate(swarm, PROMPT, 20, wait_s=30.0)

    assert run(main()) == EXPECTED[:20]


def test_300_peers_that_leave_under_running_sessions_fail_nobody():
    """Every generation sees one of its hops drain, for less time than it takes; the peer returns afterwards."""

    async def main():
        rng = random.Random(4)
        results = []
        async with world(4, DOUBLE) as it, it.client() as swarm:
            for _ in range(300):
                left = []

                async def each(number, session, left=left):
                    if number == 2:
                        name = rng.choice(session.route).peer_id
                        left.append(name)
                        it.tasks.create_task(it.stop(name, drain_s=rng.choice([0.0, 0.05, 1.0])))
                        await asyncio.sleep(0)

                results.append(await generate(swarm, PROMPT, 8, wait_s=10.0, each=each))
                while left[0] in it.draining:
                    await asyncio.sleep(0.1)
                await it.start(left[0])
        return results

    assert run(main()) == [EXPECTED[:8]] * 300


def test_a_peer_of_the_next_wire_version_is_left_aside_and_alone_is_an_error():
    async def main(alone: bool):
        loop = asyncio.get_running_loop()
        async with world(6, SINGLE if not alone else SINGLE[:2]) as it:
            if alone:
                await it.add_peer("p2", 4, 6)
            else:
                await it.add_peer("p3", 4, 6, lie=100.0)
            newer = "p2" if alone else "p3"

            async def speak(stream):
                stream.write(*encode(Hello(version=VERSION + 1, agent="newer")))
                while await stream.read():
                    pass
                stream.close()

            it.net.servers[newer] = speak
            async with it.client() as swarm:
                begin = loop.time()
                try:
                    return await generate(swarm, PROMPT, 8, wait_s=1.0), loop.time() - begin
                except NoRouteError as error:
                    return error.missing, loop.time() - begin

    tokens, _ = run(main(alone=False))
    assert tokens == EXPECTED[:8]
    missing, took_s = run(main(alone=True))
    assert missing == (4, 5)
    assert took_s < 3.0


def test_an_announcement_of_a_later_version_is_read():
    """Keys that we do not know are skipped; those that we know count."""
    import msgpack

    async def main():
        async with world(6, SINGLE) as it:
            record = it.table["p0"]
            body = msgpack.unpackb(record.body) | {"zz": [1, {"new": "thing"}], "y": 2.5}
            it.table["p0"] = replace(record, body=msgpack.packb(body))
            assert decode(it.table["p0"], N_BLOCKS) == decode(record, N_BLOCKS)
            async with it.client() as swarm:
                return await generate(swarm, PROMPT, 8)

    assert run(main()) == EXPECTED[:8]


def test_a_liar_about_its_speed_costs_no_token():
    async def main():
        async with world(7, DOUBLE) as it:
            await it.add_peer("liar", 0, 6, lie=100.0, step_s=0.2)
            async with it.client() as swarm:
                return [await generate(swarm, PROMPT, 6) for _ in range(5)]

    assert run(main()) == [EXPECTED[:6]] * 5


@pytest.mark.parametrize("seed", range(10))
def test_where_kv_is_full_others_are_taken_and_running_sessions_stay_exact(seed):
    """Six sessions at once where each peer has room for two, three times as much in all: all get through."""

    async def main():
        async with world(seed, []) as it:
            for number in range(3):
                await it.add_peer(f"p{number}", 0, 6, Limits(), n_pages=16)  # 64 tokens; a session takes 31
            async with it.client() as swarm, asyncio.TaskGroup() as tasks:
                runs = [tasks.create_task(generate(swarm, PROMPT, 20)) for _ in range(6)]
            return [task.result() for task in runs]

    assert run(main()) == [EXPECTED[:20]] * 6


# -- clocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off_s", [-600.0, 600.0])
def test_a_clients_clock_that_is_off_by_ten_minutes_refuses_no_peer(off_s):
    """The directory gives expiries in the reader's own clock (tests/swarm/test_directory.py joins so in earnest)."""

    async def main():
        async with world(8, DOUBLE) as it, it.client() as swarm:
            place = swarm._place
            directory, wall = place.directory, it.wall

            class Elsewhere:
                async def lookup(self, within_s=None):
                    return [replace(record, expiry=record.expiry + off_s) for record in await directory.lookup()]

                rest, nodes = lookup, directory.nodes

            swarm._place = replace(place, directory=Elsewhere(), wall=lambda: wall() + off_s)
            swarm._lookout = Lookout(swarm.model)
            await swarm.refresh()
            return await generate(swarm, PROMPT, 8)

    assert run(main()) == EXPECTED[:8]


# -- ghosts ------------------------------------------------------------------------------------------------------------


def ttft_s(seed: int, ghosts: int, *, silent: bool) -> float:
    """From joining to the first token. Ghosts cannot be reached; or, if `silent`, nothing answers at their address."""

    async def main():
        loop = asyncio.get_running_loop()
        async with world(seed, DOUBLE) as it:
            haunt(it, ghosts)
            if silent:
                it.net.part([("client", f"ghost{number}") for number in range(ghosts)])
            begin = loop.time()
            async with it.client() as swarm:
                assert await generate(swarm, PROMPT, 1, wait_s=60.0) == EXPECTED[:1]
                return loop.time() - begin

    return run(main())


@pytest.mark.parametrize("silent", [True, False])
def test_500_ghosts_cost_at_most_a_fifth_more_time_to_the_first_token(silent):
    seeds = range(3)
    without = sum(ttft_s(seed, 0, silent=False) for seed in seeds)
    assert sum(ttft_s(seed, 500, silent=silent) for seed in seeds) <= 1.2 * without


@pytest.mark.parametrize("nodes", [frozenset({"p0", "p1", "p2", "p3"}), frozenset({"p0"}), frozenset()])
def test_who_answers_in_the_directory_is_tried_before_ghosts_and_these_later_if_that_is_enough(nodes):
    async def main():
        async with world(4, DOUBLE) as it:
            haunt(it, 500)
            it.nodes = Nodes(nodes)
            async with it.client() as swarm:
                tried = set(swarm._pool.peers())
                assert await generate(swarm, PROMPT, 1, wait_s=60.0) == EXPECTED[:1]
                await asyncio.sleep(15.0)
                return tried, set(it.peers), swarm._met._asked

    tried, real, asked = run(main())
    assert nodes <= real <= tried
    assert len(tried) == (4 if nodes == real else 504)
    assert len(asked) == 504
