"""A private swarm's peers are closed to who knows the swarm's name in the directory, but not its secret."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from shoal.dht.invite import Invite
from shoal.peer.channel import Channel
from shoal.peer.config import PeerConfig
from shoal.peer.errors import Reason
from shoal.peer.fit import Fit
from shoal.peer.link import Patience
from shoal.peer.measure import Throughput
from shoal.peer.node import Node
from shoal.peer.offering import node_config
from shoal.peer.wire import Open, Opened, Refused, session_name

from tests.sim.clock import run
from tests.sim.network import SimTransport
from tests.sim.swarm import World
from tests.sim.toy import ToyEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PEER, MEMBER, STRANGER = "peer", "member", "stranger"
SWARM = Invite("home", "toy", (), b"s" * 32)
GUESSED, OF_ANOTHER_SWARM = replace(SWARM, secret=b"t" * 32), replace(SWARM, swarm="work", secret=b"w" * 32)
MINE, ANOTHER = session_name(STRANGER, b"mine...."), session_name(STRANGER, b"another.")


@asynccontextmanager
async def served(world: World) -> AsyncIterator[None]:
    """A peer of the private swarm, with what a real one offers its clients."""
    engine = ToyEngine(0, 6)
    model = SimpleNamespace(checkpoint=SimpleNamespace(revision="r1"), spec=SimpleNamespace(max_position=512))
    room = Fit(blocks=6, streamed=0, kv_tokens=1024, swap_pages=0, kept_bytes=1 << 20, why="")
    terms = node_config(PeerConfig(SWARM, "toy"), model, room, engine, PEER, Throughput(0.001, 0.001), None)
    async with world.net.tasks, world.tasks:
        node = Node(replace(terms, clock=asyncio.get_running_loop().time), engine, SimTransport(world.net, PEER))
        async with node:
            yield


async def ask(world: World, who: str, session: bytes, proof: bytes, namespace: bytes = SWARM.namespace):
    """What a client is answered that asks for a lease over a link of its own."""
    loop, answer = asyncio.get_running_loop(), asyncio.Queue()
    channel = Channel(await SimTransport(world.net, who).connect(PEER, ()), who, Patience(), loop.time)
    running = world.tasks.create_task(channel.run(lambda _channel, message: answer.put_nowait(message)))
    channel.send(Open(
        session=session, epoch=1, namespace=namespace, revision="r1", start=0, stop=6, max_tokens=8, next_step=0,
        dtype="float32", prev="", next="", next_addrs=(), final=True, forward_replay=False, proof=proof,
    ))  # fmt: skip
    async with asyncio.timeout(10):
        found = await answer.get()
    channel.close()
    await running
    return found


def answers(*asked: tuple) -> list[object]:
    """To clients, each `(who, session, proof)`, one after the other."""

    async def main() -> list[object]:
        async with served(world := World(3)):
            return [await ask(world, *each) for each in asked]

    return run(main())


NO_PROOFS = {
    "none": b"",
    "zeros": bytes(32),
    "with a guessed secret": GUESSED.prove(STRANGER, PEER, MINE),
    "with another swarm's": OF_ANOTHER_SWARM.prove(STRANGER, PEER, MINE),
    "of another client": SWARM.prove(MEMBER, PEER, MINE),
    "for another peer": SWARM.prove(STRANGER, "another peer", MINE),
    "for another session": SWARM.prove(STRANGER, PEER, ANOTHER),
}


@pytest.mark.parametrize("proof", NO_PROOFS.values(), ids=NO_PROOFS)
def test_who_knows_where_the_swarm_is_and_proves_nothing_gets_no_lease(proof: bytes) -> None:
    (refused,) = answers((STRANGER, MINE, proof))
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.FORBIDDEN
    assert "secret" in refused.text


def test_a_proof_that_was_seen_opens_nothing_for_others() -> None:
    """A member's own words, again: its peer id is the link's, which nobody else has."""
    session = session_name(MEMBER, b"members.")
    proof = SWARM.prove(MEMBER, PEER, session)
    opened, refused = answers((MEMBER, session, proof), (STRANGER, session, proof))
    assert isinstance(opened, Opened)
    assert isinstance(refused, Refused)
    assert (refused.reason, "secret" in refused.text) == (Reason.FORBIDDEN, True)


def test_who_does_not_know_the_name_is_told_of_another_model() -> None:
    (refused,) = answers((STRANGER, MINE, GUESSED.prove(STRANGER, PEER, MINE), GUESSED.namespace))
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.WRONG_MODEL
