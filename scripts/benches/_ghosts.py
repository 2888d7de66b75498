"""`_ghosts.py INVITE BLOCKS COUNT ADDRESS`: a process that announces COUNT peers that are not there, all blocks each.

Every line on stdin names where they claim to be (`KINDS`); the answer is the number of records that all nodes hold.
They are signed by identities of their own and claim the speed of a real peer. A node takes few records at once of one
host, so there are many, and none of them is a node that could be told from honest ones by what it holds.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from shoal.dht.directory import DHTDirectory
from shoal.dht.host import HostConfig, open_host
from shoal.dht.identity import Identity
from shoal.dht.invite import Invite
from shoal.dht.keys import SHARDS, shard_key
from shoal.dht.node import open_node
from shoal.dht.opening import Opener
from shoal.routing.announcement import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shoal.routing.announcement import Announcement

    Ghost = tuple[Identity, Announcement]

KINDS = ("closed", "black_hole", "silent")  # nothing listens there; nothing is there; what listens says nothing
TTL_S = 280.0
AT_ONCE = 32  # as many as a node takes at once of one host
HOSTS = 4  # at a time
TRIES = 3  # a node that is busy at that moment may miss one
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


async def announce(invite: Invite, address: str, ghosts: Sequence[Ghost]) -> None:
    """Announce all of them through a host of their own."""
    async with (
        open_host(HostConfig(listen=address)) as host,
        open_node(host, invite.peers, guest=True) as node,
        asyncio.TaskGroup() as tasks,
    ):
        for identity, claim in ghosts:
            directory = DHTDirectory(node, identity, invite, claim.revision)
            tasks.create_task(directory.announce(encode(claim), TTL_S))


async def held_everywhere(invite: Invite, address: str, ghosts: Sequence[Ghost]) -> set[str]:
    """Those of them that every node of the directory holds."""
    wanted = {identity.peer_id: claim.addrs for identity, claim in ghosts}
    keys = [shard_key(invite.namespace, shard) for shard in range(SHARDS)]
    async with open_host(HostConfig(listen=address)) as host, open_node(host, invite.peers, guest=True) as node:
        await node.look(*keys)
        answers = [await node.protocol.call_find(peer, keys) for peer in node.protocol.routing_table.peers()]
    opener, everywhere = Opener(invite), set(wanted)
    for found in answers:
        opened = [opener.open(raw, time.time()) for each in found or () for raw in each.records]
        peers = [decode(one.record, ghosts[0][1].stop) for one in opened if one is not None and one.record.body]
        everywhere &= {peer.peer_id for peer in peers if wanted.get(peer.peer_id) == peer.addrs}
    return everywhere


async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take what comes, and never answer."""
    with suppress(OSError, asyncio.CancelledError):
        while await reader.read(1 << 16):
            pass
    writer.close()


async def main(invite: Invite, blocks: int, count: int, address: str) -> None:
    """Announce as stdin says, until it ends."""
    identities = [Identity.generate() for _ in range(count)]
    server = await asyncio.start_server(keep_silent, address, 0)
    async with server:
        async with open_host(HostConfig(listen=address)) as host, open_node(host, invite.peers, guest=True) as node:
            real = (await DHTDirectory(node, identities[0], invite, "").lookup())[0]
        like = replace(decode(real, blocks), start=0, stop=blocks, rtts=(), reach="direct", revision=real.revision)
        while kind := (await asyncio.to_thread(sys.stdin.readline)).strip():
            where = places(kind, address, server.sockets[0].getsockname()[1])
            ghosts = [
                (identity, replace(like, peer_id=identity.peer_id, addrs=(f"{place}/p2p/{identity.peer_id}",)))
                for identity, place in zip(identities, where, strict=False)
            ]
            held, missing = set[str](), ghosts
            for _ in range(TRIES):
                shares = [missing[at : at + AT_ONCE] for at in range(0, len(missing), AT_ONCE)]
                for at in range(0, len(shares), HOSTS):
                    await asyncio.gather(*(announce(invite, address, share) for share in shares[at : at + HOSTS]))
                held = await held_everywhere(invite, address, ghosts)
                missing = [ghost for ghost in ghosts if ghost[0].peer_id not in held]
                if not missing:
                    break
            print(len(held), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Invite.parse(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
