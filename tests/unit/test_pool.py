"""Channels to others: why one ended is told, and nothing is begun once the pool was left."""

from __future__ import annotations

import asyncio
import random

import pytest
from shoal.peer.errors import HopClosed
from shoal.peer.link import Patience
from shoal.peer.pool import ChannelPool, PoolConfig
from shoal.peer.wire import VERSION, Close, Hello, Hidden, Want, encode

from tests.sim.clock import run
from tests.sim.network import SimNetwork, SimTransport

HELLO = b"".join(encode(Hello(version=VERSION, agent="test")))
FOREIGN = b"".join(encode(Hello(version=VERSION + 1, agent="test")))
ENDED = Close(session=bytes(16), epoch=1)


@pytest.mark.parametrize(
    ("first", "hangs_up", "why"),
    [
        (FOREIGN, False, f"was given up: the other side speaks wire version {VERSION + 1}, this one {VERSION}"),
        (HELLO, False, "fell silent"),
        (HELLO, True, "closed the connection"),
    ],
)
def test_why_a_channel_ended_is_told(first: bytes, hangs_up: bool, why: str) -> None:
    async def serve(stream) -> None:
        stream.write(first)
        if hangs_up:
            stream.close()

    async def go() -> tuple[str, str]:
        net, told = SimNetwork(random.Random(1)), asyncio.Queue()
        net.servers["far"] = serve
        config = PoolConfig("test", Patience(0.5, 2.0), clock=asyncio.get_running_loop().time)
        async with (
            net.tasks,
            ChannelPool(SimTransport(net, "near"), config, print, lambda *lost: told.put_nowait(lost)) as it,
        ):
            it.send("far", (), ENDED)
            return await told.get()

    assert run(go()) == ("far", why)


def test_what_is_sent_after_the_pool_was_left_goes_nowhere(recwarn: pytest.WarningsRecorder) -> None:
    async def go() -> None:
        net = SimNetwork(random.Random(1))
        config = PoolConfig("test", clock=asyncio.get_running_loop().time)
        async with ChannelPool(SimTransport(net, "near"), config, print, print) as it:
            pass
        it.send("far", (), ENDED)
        assert it.peers() == []

    run(go())
    assert not recwarn.list


def test_a_peer_that_is_not_there_is_told_once() -> None:
    async def go() -> list[tuple[str, str]]:
        net, told = SimNetwork(random.Random(1)), []
        config = PoolConfig("test", clock=asyncio.get_running_loop().time)
        async with ChannelPool(SimTransport(net, "near"), config, print, lambda *lost: told.append(lost)) as it:
            it.send("far", (), ENDED)
            it.send("far", (), ENDED)
            await asyncio.sleep(1)
        return told

    with pytest.raises(HopClosed) as refused:
        run(SimTransport(SimNetwork(random.Random(1)), "near").connect("far", ()))
    assert run(go()) == [("far", str(refused.value))]


def hidden(number: int, size: int) -> Hidden:
    """A message of a session of its own."""
    payload = bytes(size)
    return Hidden(
        session=number.to_bytes(16), epoch=1, step=1, position=0, count=1, want=Want.LAST, replay=False, rows=1,
        width=size // 4, dtype="float32", payload=payload,
    )  # fmt: skip


def test_what_a_way_carries_is_remembered_beyond_its_link_but_not_for_ever() -> None:
    async def serve(stream) -> None:
        stream.write(HELLO)
        while await stream.read():
            pass

    async def go() -> list[dict[str, float]]:
        net, seen = SimNetwork(random.Random(1)), []
        net.servers["far"] = serve
        config = PoolConfig("test", clock=asyncio.get_running_loop().time)
        async with net.tasks, ChannelPool(SimTransport(net, "near"), config, lambda *_: None, print) as it:
            it.connect("far", ())
            await asyncio.sleep(1)
            seen.append(it.rates())  # nothing was measured
            channel = it._entries["far"].channel
            channel.link.flow.proven = 5e5
            seen.append(it.rates())
            it.drop("far")
            for wait_s in (800, 200):
                await asyncio.sleep(wait_s)
                seen.append(it.rates())
        return seen

    assert run(go()) == [{}, {"far": 5e5}, {"far": 5e5}, {}]


@pytest.fixture
def slow_to_open(monkeypatch: pytest.MonkeyPatch):
    """A network in which a connection takes 2 s to stand."""

    async def connect(self, peer_id, addrs):
        await asyncio.sleep(2)
        return await usual(self, peer_id, addrs)

    usual = SimTransport.connect
    monkeypatch.setattr(SimTransport, "connect", connect)


def test_what_waits_for_a_connection_counts_as_what_waits_for_a_line(slow_to_open, monkeypatch) -> None:
    monkeypatch.setattr("shoal.peer.pool.CLOGGED_BYTES", 3500)
    read = bytearray()

    async def serve(stream) -> None:
        stream.write(HELLO)
        while data := await stream.read():
            read.extend(data)

    async def go() -> list[bool]:
        net, seen = SimNetwork(random.Random(1)), []
        net.servers["far"] = serve
        config = PoolConfig("test", clock=asyncio.get_running_loop().time)
        async with net.tasks, ChannelPool(SimTransport(net, "near"), config, lambda *_: None, print) as it:
            for number in range(4):
                it.send("far", (), hidden(number, 1000))
                seen.append(it.clogged("far"))
            it.forget("far", (3).to_bytes(16), 1)
            await asyncio.sleep(3)
            seen.append(it.clogged("far"))
        return seen

    assert run(go()) == [False, False, False, True, False]
    assert 3000 < len(read) < 4000  # without what was forgotten


def test_too_much_that_waits_for_a_connection_ends_it(slow_to_open, monkeypatch) -> None:
    monkeypatch.setattr("shoal.peer.pool.MAX_QUEUED_BYTES", 3000)

    async def go() -> list[tuple[str, str]]:
        net, told = SimNetwork(random.Random(1)), []
        config = PoolConfig("test", clock=asyncio.get_running_loop().time)
        async with ChannelPool(SimTransport(net, "near"), config, print, lambda *lost: told.append(lost)) as it:
            for number in range(8):
                it.send("far", (), hidden(number, 1000))
            await asyncio.sleep(0.1)
            assert it.peers() == []
        return told

    assert run(go()) == [("far", "has not answered yet, and too much waits for it")]


def test_a_channel_that_is_long_in_opening_is_told_while_something_waits_for_it_and_may_stand_yet() -> None:
    async def serve(stream) -> None:
        stream.write(HELLO)
        while await stream.read():
            pass

    async def go() -> list[tuple[float, str, str]]:
        net, told, loop = SimNetwork(random.Random(1), jitter_s=0.0), [], asyncio.get_running_loop()
        net.servers |= {"far": serve, "idle": serve, "near by": serve}
        net.part([("near", "far"), ("near", "idle")])

        def late(peer_id: str, why: str) -> None:
            told.append((round(loop.time(), 1), peer_id, why))

        config = PoolConfig("test", Patience(0.5, 2.0), clock=loop.time, on_late=late)
        async with net.tasks, ChannelPool(SimTransport(net, "near"), config, lambda *_: None, print) as it:
            it.send("far", (), ENDED)
            it.connect("idle", ())
            await asyncio.sleep(3.0)
            it.connect("near by", ())
            await asyncio.sleep(1.5)
            assert [it.stands(name) for name in ("far", "near by", "nobody")] == [False, True, False]
            net.heal([("near", "far")])
            await asyncio.sleep(0.3)
            assert it.stands("far")
        return told

    why = "has not answered for 2 s"
    assert run(go()) == [(2.0, "far", why), (3.0, "far", why), (4.0, "far", why)]
