"""Channels to others: why one ended is told, and nothing is begun once the pool was left."""

from __future__ import annotations

import asyncio
import random

import pytest
from shoal.peer.errors import HopClosed
from shoal.peer.link import Patience
from shoal.peer.pool import ChannelPool, PoolConfig
from shoal.peer.wire import VERSION, Close, Hello, encode

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
