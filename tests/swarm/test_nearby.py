"""Who is reached through a relay and names addresses in our network learns nothing of what is there."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
from shoal.dht import nearby
from shoal.dht.host import HostConfig, open_host
from shoal.dht.identity import Identity
from shoal.dht.knocking import Knocks
from shoal.dht.maddr import endpoint, pack
from shoal.dht.nearby import PROOF_S, meet_nearby
from shoal.dht.proof import ASKED, proves

from tests.steadiness import in_time

pytestmark = pytest.mark.swarm


@contextlib.asynccontextmanager
async def listening(says: bytes | None):
    """A program that is no peer, and the port that it listens on."""

    open_ones = []

    async def answer(_reader, writer):
        open_ones.append(writer)
        if says is None:
            writer.close()
        else:
            writer.write(says)

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        for writer in open_ones:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


async def test_a_peer_proves_itself_and_nobody_else_does():
    other = Identity.generate().peer_id
    async with open_host(HostConfig()) as host:
        place = endpoint(host.maddrs[0])
        assert await proves(host.peer_id, *place)
        assert not await proves(other, *place)
    for says in (None, b"SSH-2.0-OpenSSH\r\n" * 8, ASKED + b"no TLS" * 100):
        async with listening(says) as port:
            assert not await proves(other, "127.0.0.1", port)
    assert not await proves(other, "127.0.0.1", closed_port())


class Relayed:
    """A host that reaches a peer through a relay. done: what it did to its connections."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.knocks, self.p2p = Knocks(), self

    async def look(self):
        return ()

    async def direct_to(self, _peer_id):
        return False

    async def part(self, peer):
        self.done.append(peer)

    async def dial(self, _peer, maddrs):
        self.done.append(maddrs)


async def met(monkeypatch, peer_id: str, port: int) -> tuple[list[object], float]:
    """What a host does where a peer names that port, and for how long."""
    loop, host, maddr = asyncio.get_running_loop(), Relayed(), f"/ip4/127.0.0.1/tcp/{port}"
    monkeypatch.setattr(nearby, "in_our_network", lambda *_: [maddr])
    began = loop.time()
    await meet_nearby(host, peer_id, [maddr])
    return host.done, loop.time() - began


@pytest.mark.alone
async def test_what_listens_at_a_named_address_is_not_to_be_seen(monkeypatch):
    stranger, took = Identity.generate().peer_id, []
    for says in (None, b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9, b"", ASKED):
        async with listening(says) as port:
            done, took_s = await met(monkeypatch, stranger, port)
        assert done == [], "it has not lost its connection"
        took.append(took_s)
    async with open_host(HostConfig()) as somebody_else:
        done, took_s = await met(monkeypatch, stranger, endpoint(somebody_else.maddrs[0])[1])
        assert done == []
        took.append(took_s)
    done, took_s = await met(monkeypatch, stranger, closed_port())
    assert done == []
    took.append(took_s)
    assert min(took) >= PROOF_S - 0.001
    in_time(max(took) < PROOF_S + 0.1, took)


async def test_a_peer_that_is_there_is_met(monkeypatch):
    async with open_host(HostConfig()) as neighbour:
        port = endpoint(neighbour.maddrs[0])[1]
        monkeypatch.setattr(nearby, "PROOF_S", 5.0)
        done, _ = await met(monkeypatch, neighbour.peer_id, port)
        assert [str(done[0]), done[1]] == [neighbour.peer_id, [pack(f"/ip4/127.0.0.1/tcp/{port}")]]
        assert len(done) == 2
