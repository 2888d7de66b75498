"""The shell of a link in virtual time: who overtakes whom, when producers are held back, what a limit lets through."""

from __future__ import annotations

import asyncio
import random

import pytest
from shoal.peer.channel import CLOGGED_BYTES, Channel
from shoal.peer.line import Line
from shoal.peer.link import Patience
from shoal.peer.toll import BURST, PER_S, Toll
from shoal.peer.wire import VERSION, Close, Hello, Hidden, Mark, Message, Ping, Want, encode

from tests.sim.clock import run
from tests.sim.network import SimNetwork, SimTransport

MIB = 1 << 20
BIG, SMALL = b"b" * 16, b"s" * 16


def states(session: bytes, step: int, n_bytes: int) -> Hidden:
    rows = max(1, n_bytes // 4096)
    return Hidden(
        session=session, epoch=0, step=step, position=0, count=rows, want=Want.LAST, replay=False, rows=rows,
        width=n_bytes // 4 // rows, dtype="float32", payload=random.Random(step).randbytes(n_bytes),
    )  # fmt: skip


class Pair:
    """A channel, and when its messages came to the other side."""

    def __init__(self, line: Line | None = None, down: Line | None = None) -> None:
        self.came: list[tuple[float, Hidden]] = []
        self.rooms = 0
        self._line, self._down = line, down

    async def talk(self, say) -> None:
        loop = asyncio.get_running_loop()
        net = SimNetwork(random.Random(1))

        async def serve(stream) -> None:
            other = Channel(stream, "b", Patience(), loop.time, self._down, toll=Toll())
            await other.run(lambda _, message: self.came.append((loop.time(), message)))

        async with net.tasks:
            net.servers["b"] = serve
            channel = Channel(
                await SimTransport(net, "a").connect("b", ()), "a", Patience(), loop.time, self._line, self._room
            )
            task = net.tasks.create_task(channel.run(lambda *_: None))
            await asyncio.sleep(0.1)
            await say(channel)
            channel.close()
            await task

    def _room(self) -> None:
        self.rooms += 1


def test_a_token_overtakes_a_prompt_and_both_arrive_whole() -> None:
    pair = Pair()

    async def say(channel: Channel) -> None:
        channel.send(states(BIG, 1, 32 * MIB))
        await asyncio.sleep(0.01)
        channel.send(states(SMALL, 2, 8192))
        await asyncio.sleep(30.0)

    run(pair.talk(say))
    assert [message for _, message in pair.came] == [states(SMALL, 2, 8192), states(BIG, 1, 32 * MIB)]


def test_who_makes_more_than_the_line_takes_is_told_to_wait_and_when_to_go_on() -> None:
    pair = Pair()

    async def say(channel: Channel) -> None:
        channel.send(states(BIG, 1, MIB))
        assert not channel.clogged
        for step in range(2, 10):
            channel.send(states(BIG, step, MIB))
        assert channel.clogged
        assert not pair.rooms
        await asyncio.sleep(30.0)
        assert not channel.clogged
        assert pair.rooms == 1

    run(pair.talk(say))
    assert [message.step for _, message in pair.came] == [*range(1, 10)]
    assert CLOGGED_BYTES < 9 * MIB


def test_the_end_of_a_lease_frees_the_line() -> None:
    pair = Pair()

    async def say(channel: Channel) -> None:
        for step in range(8):
            channel.send(states(BIG, step, 4 * MIB))
        await asyncio.sleep(0.02)
        channel.send(Close(session=BIG, epoch=0))
        assert channel._turns.bytes < 1024
        await asyncio.sleep(1.0)

    run(pair.talk(say))
    assert [type(message) for _, message in pair.came] == [Close]


@pytest.mark.parametrize("side", ["line", "down"])
def test_no_more_passes_than_the_limit_of_either_side(side: str) -> None:
    pair = Pair(**{side: Line(1e6)})

    async def say(channel: Channel) -> None:
        for step in range(8):
            channel.send(states(BIG, step, MIB))
        await asyncio.sleep(60.0)

    run(pair.talk(say))
    (first, _), *_, (last, _) = pair.came
    assert len(pair.came) == 8
    assert 7 * MIB / 1e6 * 0.9 < last - first < 7 * MIB / 1e6 * 1.2


def test_what_is_small_still_goes_out_with_the_last_word() -> None:
    pair = Pair(Line(1e4))

    async def say(channel: Channel) -> None:
        channel.send(states(BIG, 1, MIB))
        await asyncio.sleep(0.01)
        channel.send(states(SMALL, 2, 4096))

    run(pair.talk(say))
    assert [message.step for _, message in pair.came] == [2]


@pytest.mark.parametrize(
    "frame", [Ping(nonce=1), Mark(number=1), Close(session=BIG, epoch=1)], ids=["ping", "mark", "close"]
)
def test_a_flood_of_small_frames_is_read_at_a_rate_that_leaves_others_their_turns(frame: Message) -> None:
    net, turns, read, seconds = SimNetwork(random.Random(1)), 0, [], 5.0

    async def flood() -> None:
        nonlocal turns
        loop = asyncio.get_running_loop()

        async def serve(stream) -> None:
            channel = Channel(stream, "b", Patience(), loop.time, toll=Toll())
            read.append(channel.link)
            await channel.run(lambda *_: None)

        async with net.tasks:
            net.servers["b"] = serve
            stream = await SimTransport(net, "a").connect("b", ())
            stream.write(*encode(Hello(version=VERSION, agent="flood")))
            data = b"".join(encode(frame)) * 1000
            ended = loop.time() + seconds
            while loop.time() < ended:
                stream.write(data)
                await asyncio.sleep(0.05)
            turns = read[0].frames
            stream.close()

    run(flood())
    assert BURST < turns < BURST + 1.2 * PER_S * seconds


def test_frames_that_bring_bytes_are_not_held_up() -> None:
    pair = Pair()

    async def say(channel: Channel) -> None:
        for step in range(20_000):
            channel.send(states(SMALL, step, 1024))
        await asyncio.sleep(3.0)

    run(pair.talk(say))
    assert len(pair.came) == 20_000
    assert pair.came[-1][0] - pair.came[0][0] < 3.2  # the line alone takes 2.75
