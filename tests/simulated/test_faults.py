"""Everything at once in virtual time: seeded faults under several generations, rogues, slowness, lost history.

Whatever happens, tokens are those of the undisturbed run, and in the end every page is free and no task is left.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from shoal.client.options import SessionOptions
from shoal.peer import wire
from shoal.peer.book import Limits
from shoal.peer.errors import HopClosed, NoRouteError, Reason
from shoal.peer.lease import Lease
from shoal.peer.wire import VERSION, Close, Hello, Hidden, Open, Opened, Ping, Pong, Refused, Reroute, Want, encode

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.network import SimTransport
from tests.sim.swarm import INVITE, N_BLOCKS, generate, states, world

PROMPT = [5, 17, 42, 99, 7, 3, 250, 1, 2, 90, 33]
SPANS = [(0, 2), (2, 4), (4, 6)]
TRIPLE = [(0, 2), (0, 3), (0, 6), (2, 4), (2, 6), (3, 5), (4, 6), (5, 6), (1, 5)]
MAX_DEEDS = 12  # fewer than the repairs after which a session gives up
LEAVE_S = 75.0  # grace, sweep, and idle links between hops: after this nothing of a session may be left


def expected(prompt, count: int) -> list[int]:
    return toy.generate(prompt, N_BLOCKS, count)


def pages(it) -> dict[str, tuple[int, int]]:
    """Free pages and all pages of every peer that runs, as its allocator counts them."""
    for peer in it.peers.values():
        peer.node.book.pages.check()
    return {name: (peer.node.book.pages.free, peer.engine.n_pages) for name, peer in it.peers.items()}


def all_free(it) -> bool:
    return all(free == total for free, total in pages(it).values())


@asynccontextmanager
async def clean_world(seed: int, spans):
    """A world that must be empty in the end: no lease, no job, no task but the test's own."""
    async with world(seed, spans) as it:
        yield it
        for peer_id in list(it.net.hung):
            it.net.resume(peer_id)
        await asyncio.sleep(LEAVE_S)
        assert all_free(it), pages(it)
        for peer in it.peers.values():
            assert not peer.node.steps.jobs
            assert not peer.node.steps.scheduler
            assert not peer.node._pool.peers()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


# -- random faults -----------------------------------------------------------------------------------------------------


async def trouble(it, rng: random.Random, spans, deeds: list[str], over: asyncio.Event) -> None:
    """`MAX_DEEDS` faults at random moments, at most half of the peers away at once; then all come back."""
    away: dict[str, str] = {}
    while not over.is_set() and len(deeds) < MAX_DEEDS:
        await asyncio.sleep(rng.uniform(0.01, 0.25))
        here = sorted(set(it.peers) - set(away))
        deed = rng.choice(["kill", "hang", "drain", "fault", "back", "back"])
        if deed == "back" and away:
            await _bring_back(it, rng.choice(sorted(away)), away, spans)
        elif deed == "fault" and here:
            it.peers[rng.choice(here)].engine.fault_next = True
        elif deed in ("kill", "hang", "drain") and len(away) < len(spans) // 2:
            name = rng.choice(here)
            away[name] = deed
            if deed == "kill":
                await it.kill(name)
            elif deed == "hang":
                it.net.hang(name)
            else:
                await it.stop(name, drain_s=rng.choice([0.0, 0.3]))
        else:
            continue
        deeds.append(deed)
    for name in sorted(away):
        await _bring_back(it, name, away, spans)


async def _bring_back(it, name: str, away: dict[str, str], spans) -> None:
    if away.pop(name) == "hang":
        it.net.resume(name)
        return
    it.net.revive(name)
    await it.add_peer(name, *spans[int(name[1:])])


@pytest.mark.parametrize("seed", range(40))
def test_random_faults_under_several_generations_change_nothing(seed):
    prompts = [PROMPT, [1, 2, 3], list(range(60, 90))]
    deeds: list[str] = []

    async def main():
        rng = random.Random(1000 + seed)
        async with clean_world(seed, TRIPLE) as it:
            async with it.client() as swarm, asyncio.TaskGroup() as tasks:
                runs = [tasks.create_task(_generate_all(swarm, prompt)) for prompt in prompts]
                over = asyncio.Event()
                tasks.create_task(trouble(it, rng, TRIPLE, deeds, over))
                await asyncio.wait(runs)
                over.set()
            return [task.result() for task in runs]

    async def _generate_all(swarm, prompt):
        return [await generate(swarm, prompt, 30, wait_s=120.0) for _ in range(2)]

    results = run(main())
    assert results == [[expected(prompt, 30)] * 2 for prompt in prompts]
    assert deeds


# -- what a hop cannot do ----------------------------------------------------------------------------------------------


class Walled(SimTransport):
    """A peer that cannot open streams to some others."""

    def __init__(self, transport: SimTransport, behind: set[str], wait_s: float | None) -> None:
        super().__init__(transport.net, transport.peer_id)
        self.behind, self.wait_s = behind, wait_s

    async def connect(self, peer_id, addrs):
        if peer_id in self.behind:
            await asyncio.sleep(0.01 if self.wait_s is None else self.wait_s)
            raise HopClosed(peer_id, f"{peer_id} cannot be reached from here")
        return await super().connect(peer_id, addrs)


def wall(it, name: str, behind: set[str], wait_s: float | None = None) -> None:
    pool = it.peers[name].node._pool
    pool._transport = Walled(pool._transport, behind, wait_s)


@pytest.mark.parametrize("seed", range(4))
def test_a_hop_that_cannot_reach_the_next_is_routed_around_and_leaves_no_lease(seed):
    """p0 does not reach p1, the client does: p1's lease is well, unused, and must be given back at once."""

    async def main():
        async with clean_world(seed, [(0, 3), (3, 6), (3, 6)]) as it, it.client() as swarm:
            wall(it, "p0", {"p1"})
            tokens = [await generate(swarm, PROMPT, 6) for _ in range(4)]
            await asyncio.sleep(1.0)
            return tokens, all_free(it)  # while the client is still there

    tokens, free = run(main())
    assert tokens == [expected(PROMPT, 6)] * 4
    assert free


def test_a_peer_that_does_not_answer_a_connect_costs_one_timeout():
    async def main():
        loop = asyncio.get_running_loop()
        async with clean_world(5, [(0, 6), (0, 6)]) as it, it.client() as swarm:
            swarm._pool._transport = Walled(swarm._pool._transport, {"p0"}, 3600.0)
            begin = loop.time()
            tokens = [await generate(swarm, PROMPT, 6) for _ in range(6)]
            return tokens, loop.time() - begin

    tokens, took_s = run(main())
    assert tokens == [expected(PROMPT, 6)] * 6
    assert took_s < 2 * 5.0 + 2.0


def test_connects_that_never_end_between_hops_are_routed_around():
    async def main():
        async with clean_world(6, [(0, 3), (3, 6), (3, 6)]) as it, it.client() as swarm:
            wall(it, "p0", {"p1"}, 3600.0)
            return await generate(swarm, PROMPT, 6)

    assert run(main()) == expected(PROMPT, 6)


def test_one_slow_peer_delays_only_those_who_use_it():
    async def main():
        async with clean_world(7, [(0, 6)]) as it:
            await it.add_peer("slow", 0, 6, step_s=0.4)
            async with it.client() as swarm, asyncio.TaskGroup() as tasks:
                runs = [tasks.create_task(generate(swarm, [i + 1, 5, 9], 10)) for i in range(8)]
            return [task.result() for task in runs], sum(it.peers["p0"].engine.batches)

    results, fast = run(main())
    assert results == [expected([i + 1, 5, 9], 10) for i in range(8)]
    assert fast >= 40


# -- history lost ------------------------------------------------------------------------------------------------------


async def long_run(swarm, count: int, recalled: list[tuple[int, int]], disturb, wait_s: float = 30.0) -> list[int]:
    """Greedy tokens, noting which inputs the session asked for again."""
    tokens = list(PROMPT)
    async with swarm.session(SessionOptions(max_tokens=len(PROMPT) + count, chunk_tokens=4, wait_s=wait_s)) as session:

        def recall(a, b):
            recalled.append((a, b))
            return states(tokens[a:b])

        session.recall_with(recall)
        new = list(PROMPT)
        for number in range(count):
            out = await session.step(states(new))
            new = [toy.choose(out[-1].tolist())]
            tokens += new
            await disturb(number, session)
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize(("budget_bytes", "from_client"), [(64, True), (1 << 20, False)])
def test_where_hops_no_longer_keep_their_outputs_the_clients_inputs_are_the_root(budget_bytes, from_client):
    recalled: list[tuple[int, int]] = []

    async def main():
        async with clean_world(8, [*SPANS, (4, 6)]) as it, it.client() as swarm:
            for peer in it.peers.values():
                peer.node.book.limits = Limits(kept_bytes_per_lease=budget_bytes)

            async def disturb(number, session):
                if number == 90:
                    await it.kill(session.route[-1].peer_id)

            return await long_run(swarm, 100, recalled, disturb)

    assert run(main()) == expected(PROMPT, 100)
    cut = len(PROMPT)  # a prompt and what was decoded after it are replayed apart
    assert (recalled[:2] == [(0, cut), (cut, cut + 90)]) is from_client


@pytest.mark.parametrize("after_s", [0.11, 0.12, 0.13, 0.15])
def test_an_early_hop_lost_after_its_step_went_on_costs_one_repair(monkeypatch, after_s):
    """p2 runs the open step when p0 dies, and answers before the far p1 has confirmed the repair: no gap may come."""
    repairs, refusals = [], []
    refuse = Lease.refuse
    monkeypatch.setattr(Lease, "refuse", lambda self, *why: refusals.append(why) or refuse(self, *why))

    async def main():
        async with clean_world(8, [*SPANS, (0, 2)]) as it, it.client() as swarm:
            monkeypatch.setattr(it.net, "delay", lambda source, target: 0.04 if "p1" in (source, target) else 0.005)
            it.peers["p2"].engine.step_s = 0.1

            async def disturb(number, session):
                if number == 5:
                    name = session.route[0].peer_id
                    asyncio.get_running_loop().call_later(after_s, it.net.kill, name)
                    asyncio.get_running_loop().call_later(after_s, it.peers.pop(name).task.cancel)
                repairs.append(session.stats.repairs)

            return await long_run(swarm, 12, [], disturb)

    assert run(main()) == expected(PROMPT, 12)
    assert repairs[-1] == 1
    assert Reason.GAP not in {reason for reason, _ in refusals}


@pytest.mark.parametrize("noticed", [True, False])
def test_a_broken_link_to_a_living_peer_leaves_no_lease_behind(noticed):
    """Only the link dies, and the peer may not notice. The client comes back to the peer, but never to that lease."""

    async def main():
        async with clean_world(9, [(0, 6)]) as it, it.client() as swarm:

            async def disturb(number, session):
                if number == 3:
                    for stream in it.net.streams_of("client"):
                        (stream.close if noticed else stream.reset)()

            assert await long_run(swarm, 8, [], disturb, wait_s=0.0) == expected(PROMPT, 8)
            for _ in range(12):  # the client is busy with that peer all the time
                assert await generate(swarm, PROMPT, 3, wait_s=30.0) == expected(PROMPT, 3)
                await asyncio.sleep(0.5)
            return all_free(it)

    assert run(main())


# -- rogues ------------------------------------------------------------------------------------------------------------


class Rogue:
    """A client that writes frames by hand."""

    def __init__(self, stream) -> None:
        self.stream = stream
        self.heard = b""
        self.say(Hello(version=VERSION, agent="rogue"))

    def say(self, *messages) -> None:
        for message in messages:
            self.stream.write(*encode(message))

    async def listen(self) -> bytes:
        """Everything until the peer closes."""
        while data := await self.stream.read():
            self.heard += data
        return self.heard


def open_message(session: bytes, **changes) -> Open:
    fields = {
        "session": session, "epoch": 0, "namespace": INVITE.namespace, "revision": "r1", "start": 0, "stop": 6,
        "max_tokens": 8, "next_step": 0, "dtype": "float32", "prev": "", "next": "", "next_addrs": (), "final": True,
        "forward_replay": False, "proof": b"", **changes,
    }  # fmt: skip
    return Open(**fields)


def hidden(session: bytes, **changes) -> Hidden:
    fields = {
        "session": session, "epoch": 0, "step": 0, "position": 0, "count": 1, "want": Want.LAST, "replay": False,
        "rows": 1, "width": toy.WIDTH, "dtype": "float32", "payload": toy.ROW.pack(9, 9, 9, 9), **changes,
    }  # fmt: skip
    return Hidden(**fields)


def beside_a_rogue(seed: int, attack, name: str = "rogue") -> None:
    """Two honest generations go on while `attack(it, rogue, honest sessions)` is done to the first peer."""

    async def main():
        async with clean_world(seed, [(0, 6)]) as it, it.client() as swarm:
            async with asyncio.TaskGroup() as tasks:
                runs = [tasks.create_task(generate(swarm, prompt, 30)) for prompt in (PROMPT, [3, 1, 4])]
                await asyncio.sleep(0.1)
                honest = list(it.peers["p0"].node.book.leases)
                assert len(honest) == 2
                stream = await SimTransport(it.net, name).connect("p0", ())
                await attack(it, Rogue(stream), honest)
                stream.close()
            assert it.peers["p0"].task.done() is False
            return [task.result() for task in runs]

    assert run(main()) == [expected(PROMPT, 30), expected([3, 1, 4], 30)]


@pytest.mark.parametrize("seed", range(8))
def test_garbage_closes_the_link_and_touches_nobody(seed):
    async def attack(it, rogue, honest):
        rng = random.Random(seed)
        valid = b"".join(encode(hidden(honest[0])))
        damaged = bytearray(valid)
        damaged[rng.randrange(8, len(valid) - 16)] ^= 1 << rng.randrange(8)
        # A second greeting is an offence in itself: whatever the garbage passes for, the link ends.
        rogue.stream.write(rng.choice([rng.randbytes(300), bytes(damaged), b"\xff" * 9, b"\x00" * 64]))
        rogue.say(Hello(version=VERSION, agent="again"))
        async with asyncio.timeout(1.0):
            await rogue.listen()

    beside_a_rogue(seed, attack)


def test_what_belongs_to_others_cannot_be_touched():
    async def attack(it, rogue, honest):
        for session in honest:
            rogue.say(
                hidden(session), hidden(session, replay=True), hidden(session, step=1, position=2),
                Close(session=session, epoch=(1 << 31) - 1),
                Reroute(session=session, epoch=(1 << 31) - 1, prev="", next="rogue", next_addrs=(), replay_to=4),
                open_message(session), open_message(session, epoch=(1 << 31) - 1),
            )  # fmt: skip
        await asyncio.sleep(0.1)
        assert list(it.peers["p0"].node.book.leases) == honest

    beside_a_rogue(1, attack)


def test_a_clients_own_messages_from_the_wrong_side_do_no_harm():
    async def attack(it, rogue, honest):
        for session in (*honest, b"r" * 16):
            rogue.say(Opened(session=session, epoch=0), Pong(nonce=5))
            rogue.say(Refused(session=session, epoch=0, reason=Reason.FAULT, text="", retry_s=0.0))
        await asyncio.sleep(0.1)
        assert not rogue.stream.is_closed

    beside_a_rogue(2, attack)


def test_a_link_that_its_client_gave_up_may_come_late_and_touches_nothing_that_is_open():
    """What was sent over a line that was cut arrives when it is mended, behind what a new connection brought. The last
    hop hears nothing else from the client while a session runs."""

    async def main():
        async with clean_world(7, [(0, 3), (3, 6)]) as it, it.client() as swarm, asyncio.TaskGroup() as tasks:
            running = tasks.create_task(generate(swarm, PROMPT, 30))
            await asyncio.sleep(0.1)
            assert it.peers["p1"].node.book.leases
            stream = await SimTransport(it.net, "client").connect("p1", ())
            late = Rogue(stream)
            late.say(Close(session=b"o" * 16, epoch=3), open_message(wire.session_name("client", b"p" * 8), start=3))
            await asyncio.sleep(0.05)
            assert not running.done()
            stream.close()
            async with asyncio.timeout(0.95):
                return await running

    assert run(main()) == expected(PROMPT, 30)


def test_one_client_cannot_take_more_leases_than_its_share():
    async def attack(it, rogue, honest):
        book = it.peers["p0"].node.book
        book.limits = replace(book.limits, leases_per_client=10)
        for number in range(100):
            rogue.say(open_message(wire.session_name("rogue", number.to_bytes(8, "big")), max_tokens=4))
        await asyncio.sleep(0.1)
        assert sum(lease.owner == "rogue" for lease in book.leases.values()) == 10

    beside_a_rogue(3, attack)


def test_a_peer_without_room_still_serves_those_who_have_it():
    async def attack(it, rogue, honest):
        for number in range(100):
            rogue.say(open_message(wire.session_name("rogue", number.to_bytes(8, "big")), max_tokens=64))
        await asyncio.sleep(0.1)
        assert it.peers["p0"].node.book.free_tokens < 64

    beside_a_rogue(4, attack)


def test_steps_out_of_bounds_on_ones_own_lease_are_refused_and_never_run():
    async def attack(it, rogue, honest):
        mine = wire.session_name("rogue", b"r" * 8)
        rogue.say(
            open_message(mine), hidden(mine, position=8), hidden(mine, position=7, count=2, rows=2, payload=bytes(32)),
            hidden(mine, step=3, position=1), hidden(mine, position=1), hidden(mine, width=2, payload=bytes(8)),
            hidden(mine, dtype="bfloat16", payload=bytes(8)), hidden(mine, count=2),
            hidden(mine, replay=True, position=3), hidden(mine, epoch=9), open_message(mine),
        )  # fmt: skip
        await asyncio.sleep(0.1)
        lease = it.peers["p0"].node.book.find(mine)
        assert isinstance(lease, Lease)
        assert (lease.position, lease.next_step) == (0, 0)

    beside_a_rogue(5, attack)


def test_a_next_hop_that_does_not_exist_harms_only_its_lease():
    async def attack(it, rogue, honest):
        mine = wire.session_name("rogue", b"r" * 8)
        rogue.say(open_message(mine, next="nobody", final=False), hidden(mine))
        other = wire.session_name("rogue", b"q" * 8)
        rogue.say(open_message(other, next="p0", final=False), hidden(other))  # to itself
        await asyncio.sleep(0.5)

    beside_a_rogue(6, attack)


def test_a_client_that_closes_in_the_middle_of_everything():
    async def attack(it, rogue, honest):
        mine = wire.session_name("rogue", b"r" * 8)
        for number in range(8):
            rogue.say(open_message(mine, epoch=2 * number), hidden(mine, epoch=2 * number), Ping(nonce=number))
            if number % 2:
                rogue.say(Close(session=mine, epoch=2 * number))
            await asyncio.sleep(0.001 * number)

    beside_a_rogue(7, attack)


def test_another_swarms_client_is_turned_away():
    async def attack(it, rogue, honest):
        mine = wire.session_name("rogue", b"r" * 8)
        rogue.say(open_message(mine, namespace=b"x" * 32), open_message(mine, revision="r2"))
        await asyncio.sleep(0.1)
        assert list(it.peers["p0"].node.book.leases) == honest

    beside_a_rogue(8, attack)


def test_no_holder_is_an_error_that_names_the_blocks_and_not_a_stop():
    async def main():
        async with clean_world(12, SPANS) as it, it.client() as swarm:

            async def each(number, session):
                if number == 3:
                    await it.kill("p1")

            with pytest.raises(NoRouteError) as caught:
                await generate(swarm, PROMPT, 10, wait_s=2.0, each=each)
            return caught.value

    assert run(main()).missing == (2, 3)
