"""What links make a peer hold that bring messages and never end them: as much as their leases let expect, no more."""

from __future__ import annotations

import asyncio

import pytest
from shoal.blocks.formats import row_bytes
from shoal.peer.incoming import EACH_LEASE, MAX_LINKS_EACH
from shoal.peer.wire import PREFIX, VERSION, Hello, Hidden, Open, Part, Ping, Want, encode, session_name

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.network import SimStream, SimTransport
from tests.sim.swarm import INVITE, N_BLOCKS, generate, world
from tests.sim.toy import WIDTH

HELLO = encode(Hello(version=VERSION, agent="guest"))
PART = bytes(256 * 1024)
MIB = 1024 * 1024
TOKENS = 100


def held(node) -> int:
    """Bytes of messages and frames that are not whole."""
    links = [channel.link for channel in node._links.values()]
    return sum(len(link._bytes) + sum(len(begun.payload) for begun in link.parts._begun.values()) for link in links)


def request(name: str) -> Open:
    return Open(
        session=session_name(name, bytes(8)), epoch=1, namespace=INVITE.namespace, revision="r1", start=0, stop=1,
        max_tokens=TOKENS, next_step=0, dtype="float32", prev="", next="", next_addrs=(), final=True,
        forward_replay=False, proof=b"",
    )  # fmt: skip


def begun(ticket: int, size: int) -> bytes:
    """All parts but the last of a message with so large a payload."""
    came, parts = 0, []
    header = b"".join(encode(Hidden(
        session=bytes(16), epoch=1, step=0, position=0, count=1, want=Want.ALL, replay=False, rows=1, width=1,
        dtype="float32", payload=bytes(4),
    )))[PREFIX.size : -4]  # fmt: skip
    while came < size - 1:
        payload = PART[: min(len(PART), size - 1 - came)]
        came += len(payload)
        parts += encode(Part(ticket=ticket, left=size - came, header=b"" if parts else header, payload=payload))
    return b"".join(parts)


def frame(size: int) -> bytes:
    """Three quarters of one frame."""
    return PREFIX.pack(64, size) + bytes(3 * size // 4)


async def guests(it, names: int, *first) -> list:
    """Streams to the first peer, as many of each name as there may be, on which this was said."""
    streams = []
    for number in range(names):
        for _ in range(MAX_LINKS_EACH):
            streams.append(await SimTransport(it.net, f"guest{number}").connect("p0", ()))
            streams[-1].write(*HELLO, *(b"".join(encode(each(f"guest{number}"))) for each in first))
    return streams


@pytest.mark.parametrize(
    ("said", "most"), [(begun(1, 4 * MIB), 0), (frame(4 * MIB), 0), (frame(MIB), MIB)], ids=["parts", "frame", "small"]
)
def test_who_has_no_lease_brings_nothing_that_is_kept(said, most):
    async def main() -> int:
        async with world(3, [(0, 6)]) as it:
            streams = await guests(it, 2)
            for stream in streams:
                stream.write(said)
            await asyncio.sleep(0.5)
            kept = held(it.peers["p0"].node) // len(streams)
            for stream in streams:
                stream.close()
            return kept

    assert run(main()) <= most


def test_who_has_a_lease_brings_what_it_may_hold():
    """Over however many links."""
    row = row_bytes("float32", WIDTH)

    async def main() -> tuple[int, int]:
        async with world(3, [(0, 6)]) as it:
            streams = await guests(it, 3, request)
            node = it.peers["p0"].node
            for stream in streams:
                stream.write(*(begun(ticket, TOKENS * row) for ticket in range(1, 5)))
            await asyncio.sleep(0.5)
            kept, leases = held(node), len(node.book.leases)
            for stream in streams:
                stream.close()
            return kept, leases

    kept, leases = run(main())
    assert leases == 3
    assert kept == leases * EACH_LEASE * (TOKENS * row - 1)


def test_those_that_hold_most_make_room(monkeypatch):
    monkeypatch.setattr("shoal.peer.incoming.MAX_HELD_BYTES", 3 * TOKENS * row_bytes("float32", WIDTH))

    async def main() -> tuple[list[int], int, int]:
        async with world(3, [(0, 6)]) as it, it.client() as swarm:
            streams = await guests(it, 2, request)
            size, node = TOKENS * row_bytes("float32", WIDTH), it.peers["p0"].node
            for stream in (streams[0], streams[MAX_LINKS_EACH]):
                stream.write(begun(1, size), begun(2, size))
            lost = 0

            async def each(_number, session) -> None:
                nonlocal lost
                await asyncio.sleep(0.2)
                lost = session.stats.repairs

            tokens = await generate(swarm, [1, 2, 3], 20, wait_s=20.0, each=each)
            assert held(node) == 2 * (size - 1)
            left = [channel.remote for channel in node._links.values() if channel.remote != "client"]
            for stream in streams:
                stream.close()
            return tokens, len(left), lost

    tokens, left, lost = run(main())
    assert tokens == toy.generate([1, 2, 3], N_BLOCKS, 20)
    assert (left, lost) == (2 * MAX_LINKS_EACH - 1, 0)


def test_answers_that_a_stranger_does_not_read_do_not_pile_up(monkeypatch):
    """It pings a million times; a client whose answers lie unread as well goes on."""
    unread: dict[SimStream, int] = {}
    usual = SimStream.write

    def write(self, *buffers):
        unread[self] = unread.get(self, 0) + sum(map(len, buffers))
        usual(self, *buffers)

    monkeypatch.setattr(SimStream, "write", write)
    monkeypatch.setattr(SimStream, "queued_bytes", lambda self: 2 * MIB if self.remote == "client" else unread[self])

    async def main() -> tuple[list[int], int]:
        async with world(3, [(0, 6)]) as it, it.client() as swarm:
            stream = await SimTransport(it.net, "guest").connect("p0", ())
            stream.write(*HELLO)

            async def each(_number, _session) -> None:
                stream.write(b"".join(encode(Ping(nonce=1))) * 50_000)
                await asyncio.sleep(0.2)

            tokens = await generate(swarm, [1, 2, 3], 20, wait_s=20.0, each=each)
            most = max(size for stream, size in unread.items() if stream.remote == "guest")
            stream.close()
            return tokens, most

    tokens, most = run(main())
    assert tokens == toy.generate([1, 2, 3], N_BLOCKS, 20)
    assert most < 5 * MIB
