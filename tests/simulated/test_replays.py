"""What a hop sends again to refill the next one: a stranger fills nobody's link with it, and repairs go on."""

from __future__ import annotations

import asyncio

import pytest
from shoal.client.options import SessionOptions
from shoal.peer.channel import Channel
from shoal.peer.errors import Reason
from shoal.peer.link import Patience
from shoal.peer.repeats import AT_ONCE, EVERY_S
from shoal.peer.wire import Hidden, Open, Opened, Refused, Reroute, Want, session_name

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.network import SimTransport, messages_in
from tests.sim.swarm import INVITE, N_BLOCKS, states, world

PROMPT = [(37 * i + i // 7) % toy.VOCAB for i in range(60)]
ROWS, FRAMES = 64, 200


def fill_a_link() -> tuple[int, int, list[Reason]]:
    """A stranger brings some rows once, and has them sent to a third party time and again, 50 times a second. Bytes
    of his small frames, bytes that the third party gets, and what he is refused."""
    sent: list[tuple[str, str, int]] = []
    refusals: list[Reason] = []

    async def main():
        async with world(1, [(0, 3), (3, 6)]) as it:
            session = session_name("stranger", b"c" * 8)
            opened, ran = asyncio.Event(), asyncio.Event()

            def hear(_channel, message):
                opened.set()
                if isinstance(message, Refused):
                    refusals.append(message.reason)
                elif not isinstance(message, Opened):
                    ran.set()

            stream = await SimTransport(it.net, "stranger").connect("p0", ())
            channel = Channel(stream, "stranger", Patience(), asyncio.get_running_loop().time)
            task = it.tasks.create_task(channel.run(hear))
            channel.send(Open(
                session=session, epoch=1, namespace=INVITE.namespace, revision="r1", start=0, stop=3, max_tokens=ROWS,
                next_step=0, dtype="float32", prev="", next="p1", next_addrs=("/p1",), final=False,
                forward_replay=False, proof=INVITE.prove("stranger", "p0", session),
            ))  # fmt: skip
            await opened.wait()
            payload = states([5] * ROWS).numpy().tobytes()
            channel.send(Hidden(
                session=session, epoch=1, step=0, position=0, count=ROWS, want=Want.NONE, replay=False, rows=ROWS,
                width=toy.WIDTH, dtype="float32", payload=payload,
            ))  # fmt: skip
            await ran.wait()
            it.net.listeners.append(lambda source, target, data: sent.append((source, target, len(data))))
            for epoch in range(2, FRAMES + 2):
                channel.send(Reroute(
                    session=session, epoch=epoch, prev="", next="p1", next_addrs=("/p1",), replay_to=ROWS
                ))  # fmt: skip
                await asyncio.sleep(0.02)
            await asyncio.sleep(1.0)
            channel.close()
            task.cancel()

    run(main())
    small, large = (sum(size for *pair, size in sent if pair == way) for way in (["stranger", "p0"], ["p0", "p1"]))
    return small, large, refusals


def test_a_stranger_has_a_peer_fill_nobody_elses_link():
    small, large, refusals = fill_a_link()
    times = AT_ONCE + 0.02 * FRAMES / EVERY_S + 1
    assert small < 2**14
    assert large < times * (ROWS * toy.WIDTH * 4 + 300) + 2**12  # with headers, pings and marks
    assert len(refusals) > FRAMES - times - 5
    assert {*refusals} == {Reason.NO_REPLAY}


def losing_the_next(faults: int, each_s: float) -> tuple[list[int], list[Reason], list[tuple[int, int]], int]:
    """Generate over a hop that stays and one that dies before each token. Tokens, refusals, the inputs that the client
    was asked for again, and repairs."""
    refusals: list[Reason] = []
    recalled: list[tuple[int, int]] = []

    def hear(_source, _target, data):
        refusals.extend(message.reason for message in messages_in(data) if isinstance(message, Refused))

    async def main():
        async with world(2, [(0, 3), (3, 6), (3, 6), (3, 6)]) as it, it.client() as swarm:
            tokens = list(PROMPT)

            def recall(start, stop):
                recalled.append((start, stop))
                return states(tokens[start:stop])

            async with swarm.session(SessionOptions(len(PROMPT) + faults, wait_s=30.0)) as session:
                session.recall_with(recall)
                it.net.listeners.append(hear)
                new = list(PROMPT)
                for number in range(faults):
                    if number:
                        name = session.route[-1].peer_id
                        await it.kill(name)
                        await asyncio.sleep(each_s / 2)
                        await it.start(name)
                        await asyncio.sleep(each_s / 2)
                    out = await session.step(states(new))
                    new = [toy.choose(out[-1].tolist())]
                    tokens += new
                return tokens[len(PROMPT) :], session.stats.repairs

    tokens, repairs = run(main())
    return tokens, refusals, recalled, repairs


def test_a_fault_every_five_seconds_is_refilled_by_the_hop_before_it():
    faults = 5 * AT_ONCE
    tokens, refusals, recalled, repairs = losing_the_next(faults, 5.0)
    assert tokens == toy.generate(PROMPT, N_BLOCKS, faults)
    assert repairs >= faults - 1
    assert Reason.NO_REPLAY not in refusals
    assert not recalled


@pytest.mark.parametrize("at_once", [0, 1, 3])
def test_a_session_that_is_refused_refills_from_its_own_inputs(monkeypatch, at_once):
    monkeypatch.setattr("shoal.peer.repeats.AT_ONCE", at_once)
    monkeypatch.setattr("shoal.peer.repeats.EVERY_S", 1e9)
    tokens, refusals, recalled, _ = losing_the_next(12, 5.0)
    assert tokens == toy.generate(PROMPT, N_BLOCKS, 12)
    assert refusals.count(Reason.NO_REPLAY) >= 1
    assert recalled
