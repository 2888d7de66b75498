"""Whence somebody's direct stream comes: what its frames and those of others there cost, how many may begin."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from types import SimpleNamespace

import pytest
from shoal.dht.identity import Identity
from shoal.peer import callers, direct
from shoal.peer.callers import BEGUN, Beginnings, Callers
from shoal.peer.direct import DirectPort, dial
from shoal.peer.transport import P2PTransport

CROWD, ELSEWHERE = "11.0.0.0/24", "11.9.9.0/24"


async def taken(_name: str, _handler: object) -> None:
    """The daemon has learned of a handler."""


@contextlib.asynccontextmanager
async def serving(identity: Identity):
    """A transport with a port of its own: it, and a queue of the streams that came."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        p2p = SimpleNamespace(add_binary_stream_handler=taken)
        host = SimpleNamespace(peer_id=identity.peer_id, identity=identity, p2p=p2p)
        transport = P2PTransport(host, DirectPort(identity, listening, ()))
        came: asyncio.Queue = asyncio.Queue()

        async def keep(stream) -> None:
            came.put_nowait(stream)
            await asyncio.Event().wait()

        task = asyncio.create_task(transport.serve(keep))
        try:
            yield transport, came, listening.getsockname()[1]
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_streams_of_one_network_owe_together(monkeypatch):
    monkeypatch.setattr(callers, "network_of", lambda maddr: CROWD if maddr.startswith("/ip4/127.0.0.1/") else "wrong")
    there, names = Identity.generate(), [Identity.generate() for _ in range(3)]
    async with serving(there) as (transport, came, port):
        ours = [await dial(name, there.peer_id, "127.0.0.1", port) for name in names]
        theirs = [await came.get() for _ in names]
        assert {transport.whence(name.peer_id) for name in names} == {CROWD}
        assert transport.whence(there.peer_id) == "", "nobody knows"
        assert [stream.crowd.wait_s(20_000, 0, 1.0) for stream in theirs] == pytest.approx([0.0, 0.89, 3.33], rel=0.01)
        for stream in ours:
            stream.close()


async def test_streams_of_our_own_network_owe_nothing_together():
    there, here = Identity.generate(), Identity.generate()
    async with serving(there) as (transport, came, port):
        stream = await dial(here, there.peer_id, "127.0.0.1", port)
        assert (await came.get()).crowd is None
        assert transport.whence(here.peer_id) is None
        stream.close()


async def test_libp2p_tells_whence_a_stream_comes():
    there, here = Identity.generate(), Identity.generate()
    async with serving(there) as (transport, came, _):
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=theirs)
        info = SimpleNamespace(peer_id=SimpleNamespace(to_base58=lambda: here.peer_id), addr="/ip4/11.9.9.7/tcp/4001")
        await transport._accept(info, reader, writer)
        assert (await came.get()).crowd is not None
        assert transport.whence(here.peer_id) == ELSEWHERE
        ours.close()


def test_who_begins_streams_without_end_leaves_others_theirs(monkeypatch):
    now = 100.0
    monkeypatch.setattr(callers.time, "monotonic", lambda: now)
    beginnings, begun = Beginnings(), 0
    for _ in range(60_000):
        now += 0.001
        begun += beginnings.take(CROWD)
    assert BEGUN.network.burst <= begun <= BEGUN.network.burst + 60 * BEGUN.network.per_s + 1
    assert [beginnings.take(ELSEWHERE) for _ in range(64)] == [True] * 64, "clients behind one address, at once"
    assert all(beginnings.take(None) for _ in range(10_000))


async def test_handshakes_of_one_network_are_few_and_others_go_on(monkeypatch):
    monkeypatch.setattr(callers, "BEGUN", callers.Bounds(*[callers.Bound(8, 0.1)] * 3))
    whence = [CROWD]
    monkeypatch.setattr(direct, "network_of", lambda _maddr: whence[-1])
    there = Identity.generate()
    async with serving(there) as (_, came, port):
        let_in = 0
        for _ in range(20):
            with contextlib.suppress(OSError):
                stream = await dial(Identity.generate(), there.peer_id, "127.0.0.1", port)
                let_in += 1
                stream.close()
        assert let_in == 8
        whence.append(ELSEWHERE)
        stream = await dial(Identity.generate(), there.peer_id, "127.0.0.1", port)
        for _ in range(9):
            await came.get()
        stream.close()


def test_who_was_not_here_for_long_is_forgotten(monkeypatch):
    monkeypatch.setattr(callers, "KNOWN", 8)
    known = Callers()
    for number in range(20):
        known.note(SimpleNamespace(remote=str(number), maddr=f"/ip4/11.0.{number}.1/tcp/1"))
    assert [known.whence(str(number)) for number in (11, 12, 19)] == ["", "11.0.12.0/24", "11.0.19.0/24"]
