"""Clients that lie to a peer about where hops are, and what another client then had to carry by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shoal.peer.channel import Channel
from shoal.peer.link import Patience
from shoal.peer.wire import Close, Open, session_name

from tests.sim.network import SimTransport
from tests.sim.swarm import INVITE, generate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.client.swarm import Swarm

    from tests.sim.swarm import World


def named(client: str, number: int, hop: str, addrs: tuple[str, ...]) -> Open:
    """A request for a lease on the first block, whose next hop is to be found there."""
    return Open(
        session=session_name(client, number.to_bytes(8, "big")), epoch=1, namespace=INVITE.namespace, revision="r1",
        start=0, stop=1, max_tokens=1, next_step=0, dtype="float32", prev="", next=hop, next_addrs=addrs, final=False,
        forward_replay=False, proof=b"",
    )  # fmt: skip


async def stranger(it: World, name: str, told: list[object] | None = None) -> Channel:
    """A link of somebody's to the first peer; what it answers goes to `told`."""
    loop = asyncio.get_running_loop()
    channel = Channel(await SimTransport(it.net, name).connect("p0", ()), name, Patience(), loop.time)
    it.tasks.create_task(channel.run(lambda _, message: None if told is None else told.append(message)))
    return channel


async def strangers(it: World, names: int) -> list[tuple[str, Channel]]:
    """As many with their links, each under a name of its own."""
    return [(f"rogue{number}", await stranger(it, f"rogue{number}")) for number in range(names)]


async def mislead(rogues: Sequence[tuple[str, Channel]], every_s: float) -> None:
    """They name in turn 2,000 addresses of the second hop, one each time, and leave again."""
    for number in range(2000):
        name, rogue = rogues[number % len(rogues)]
        leave(rogue, named(name, number, "p1", (f"/ip4/11.0.{number // 250}.{number % 250}/tcp/1",)))
        await asyncio.sleep(every_s)


def leave(rogue: Channel, request: Open) -> None:
    """Ask for a lease, and give it up at once."""
    rogue.send(request)
    rogue.send(Close(session=request.session, epoch=request.epoch))


async def carried(swarm: Swarm, count: int, pause_s: float = 0.0) -> tuple[list[int], int]:
    """So many tokens after [1, 2, 3], and how often the client had to carry what its hops could not send one another.

    pause_s: seconds between tokens.
    """
    lost = 0

    async def each(_number: int, session) -> None:
        nonlocal lost
        await asyncio.sleep(pause_s)
        lost = session.stats.repairs + session.stats.bridges

    return await generate(swarm, [1, 2, 3], count, wait_s=20.0, each=each), lost
