"""`_ghosts.py INVITE BLOCKS COUNT ADDRESS`: a process that announces COUNT peers that are not there, all blocks each.

Every line on stdin names where they claim to be (`KINDS`); the answer is the number of records that the directory took.
The records are signed by identities of their own and claim the speed of a real peer.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from shoal.dht.directory import DHTDirectory
from shoal.dht.host import HostConfig, open_host
from shoal.dht.identity import Identity
from shoal.dht.invite import Invite
from shoal.dht.node import open_node
from shoal.routing.announcement import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shoal.routing.announcement import Announcement

KINDS = ("closed", "black_hole", "silent")  # nothing listens there; nothing is there; what listens says nothing
TTL_S = 280.0
AT_ONCE = 32
CLOSED_PORT = 9


def places(kind: str, address: str, silent_port: int) -> Iterator[str]:
    """Addresses of ghosts, one after the other."""
    number = 0
    while True:
        if kind == "black_hole":
            yield f"/ip4/11.{1 + number // 250}.{number % 250}.1/tcp/4001"
        else:
            yield f"/ip4/{address}/tcp/{CLOSED_PORT if kind == 'closed' else silent_port}"
        number += 1


async def announce(directories: Sequence[DHTDirectory], claims: Sequence[Announcement]) -> int:
    """Announce all of them; how many the directory shows then."""
    for at in range(0, len(claims), AT_ONCE):
        async with asyncio.TaskGroup() as tasks:
            for directory, claim in zip(directories[at : at + AT_ONCE], claims[at : at + AT_ONCE], strict=True):
                tasks.create_task(directory.announce(encode(claim), TTL_S))
    wanted = {claim.peer_id: claim.addrs for claim in claims}
    found = [decode(record, claims[0].stop) for record in await directories[0].lookup()]
    return sum(wanted.get(peer.peer_id) == peer.addrs for peer in found)


async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take what comes, and never answer."""
    with suppress(OSError):
        while await reader.read(1 << 16):
            pass
    writer.close()


async def main(invite: Invite, blocks: int, count: int, address: str) -> None:
    """Announce as stdin says, until it ends."""
    identities = [Identity.generate() for _ in range(count)]
    server = await asyncio.start_server(keep_silent, address, 0)
    async with server, open_host(HostConfig(listen=address)) as host, open_node(host, invite.peers) as node:
        real = (await DHTDirectory(node, identities[0], invite, "").lookup())[0]
        like = replace(decode(real, blocks), start=0, stop=blocks, rtts=(), reach="direct")
        directories = [DHTDirectory(node, identity, invite, real.revision) for identity in identities]
        while kind := (await asyncio.to_thread(sys.stdin.readline)).strip():
            where = places(kind, address, server.sockets[0].getsockname()[1])
            claims = [
                replace(like, peer_id=identity.peer_id, addrs=(f"{place}/p2p/{identity.peer_id}",))
                for identity, place in zip(identities, where, strict=False)
            ]
            print(await announce(directories, claims), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Invite.parse(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
