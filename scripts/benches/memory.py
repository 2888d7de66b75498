"""What a peer's memory does over sessions that are opened, used and dropped without being closed."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from _loop import run
from _report import print_table, write_json
from _swarm import PEER, Shape, tell
from shoal.client.cli.children import Child, Children
from shoal.client.cli.complaint import CommandError
from shoal.dht.directory import open_directory
from shoal.dht.host import Host, HostConfig, open_host
from shoal.dht.identity import Identity
from shoal.dht.invite import Invite
from shoal.dht.maddr import direct_place
from shoal.peer.channel import Channel
from shoal.peer.link import Patience
from shoal.peer.transport import P2PTransport
from shoal.peer.wire import Hidden, Open, Opened, Refused, Want, session_name
from shoal.routing.announcement import Announcement, decode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from shoal.dht.directory import Directory
    from shoal.peer.wire import Message

SHAPE = Shape(blocks=2, hidden=256, intermediate=512, heads=4)
TOKENS = 32
AT_ONCE = 50  # sessions of one client that vanishes
WARM_PART = 0.2  # of the sessions that count
GRACE_S = 6.5  # until a lost client's leases have ended


@dataclass
class Peer:
    """The real peer under test and what others see of it."""

    child: Child
    invite: Invite
    announcement: Announcement
    revision: str

    def rss_mib(self) -> float:
        """Resident memory of the peer's process."""
        return float(psutil.Process(self.child.pid).memory_info().rss) / 2**20

    def descriptors(self) -> int:
        """Open files and sockets of the peer and of its network daemon."""
        process = psutil.Process(self.child.pid)
        return sum(each.num_fds() for each in (process, *process.children(recursive=True)))


def _open(peer: Peer, session: bytes) -> Open:
    about = peer.announcement
    return Open(
        session=session, epoch=0, namespace=peer.invite.namespace, revision=peer.revision, start=about.start,
        stop=about.stop, max_tokens=TOKENS, next_step=0, dtype="float32", prev="", next="", next_addrs=(), final=True,
        forward_replay=False, proof=b"",
    )  # fmt: skip


def _prompt(session: bytes) -> Hidden:
    return Hidden(
        session=session, epoch=0, step=0, position=0, count=TOKENS, want=Want.ALL, replay=False, rows=TOKENS,
        width=SHAPE.hidden, dtype="float32", payload=bytes(4 * TOKENS * SHAPE.hidden),
    )  # fmt: skip


@asynccontextmanager
async def using(host: Host, peer: Peer, count: int, addrs: Sequence[str] = ()) -> AsyncIterator[None]:
    """Sessions over one link, a prompt run in each; the link is cut at the end. `addrs`: those of the peer's that are
    tried, all if none are given. Errors: `CommandError` on a refusal."""
    done, answered, refusals = asyncio.Event(), 0, list[str]()

    def on_message(channel: Channel, message: Message) -> None:
        nonlocal answered
        if isinstance(message, Opened):
            channel.send(_prompt(message.session))
        if isinstance(message, Hidden):
            answered += 1
        if isinstance(message, Refused):
            refusals.append(message.text)
        if refusals or answered == count:
            done.set()

    stream = await P2PTransport(host).connect(peer.announcement.peer_id, addrs or peer.announcement.addrs)
    channel = Channel(stream, "shoal-bench", Patience(), time.perf_counter)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(channel.run(on_message))
        for _ in range(count):
            channel.send(_open(peer, session_name(host.peer_id, os.urandom(8))))
        async with asyncio.timeout(60):
            await done.wait()
        yield
        running.cancel()
    if refusals:
        raise CommandError(f"the peer refused a session: {refusals[0]}")


async def until(found: Callable[[], Awaitable[bool]], seconds: float) -> float:
    """Seconds until something holds. Errors: `CommandError`."""
    began = time.perf_counter()
    while not await found():
        if time.perf_counter() - began > seconds:
            raise CommandError(f"leases are still held {seconds:g} s after their clients went away")
        await asyncio.sleep(0.5)
    return time.perf_counter() - began


async def sessions_of(directory: Directory) -> int:
    """How many leases the only peer says that it has."""
    (record,) = await directory.lookup()
    return decode(record, SHAPE.blocks).queue


async def measure(sessions: int) -> dict[str, float | int]:
    """Resident memory after a warm-up and after so many sessions more, when every lease has ended."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        children = await stack.enter_async_context(Children({"OMP_NUM_THREADS": "1", "HOME": str(folder)}))
        model = SHAPE.save(folder / "model")
        node = await children.start("bootstrap", ["bootstrap", "--json", "--model", "model"])
        invite = str((await node.event("invite"))["invite"])
        argv = [*PEER, "--model", str(model), "--join", invite, "--blocks", f"0:{SHAPE.blocks}"]
        child = await children.start("peer", [*argv, "--dtype", "float32", "--kv-tokens", str(8 * AT_ONCE * TOKENS)])
        await child.event("event", "online")
        host, directory = await _join(stack, invite)
        (record,) = await directory.lookup()
        peer = Peer(child, Invite.parse(invite), decode(record, SHAPE.blocks), record.revision)
        return await _trial(host, directory, peer, sessions)


async def _join(stack: AsyncExitStack, invite: str) -> tuple[Host, Directory]:
    parsed, identity = Invite.parse(invite), Identity.generate()
    host = await stack.enter_async_context(open_host(HostConfig(identity=identity, bootstrap=parsed.peers)))
    return host, await stack.enter_async_context(open_directory(host, identity, parsed, ""))


async def _trial(host: Host, directory: Directory, peer: Peer, sessions: int) -> dict[str, float | int]:
    async def idle() -> bool:
        return await sessions_of(directory) == 0

    descriptors, marks, dropped, freed_s = peer.descriptors(), list[float](), list[int](), 0.0
    for count in (max(round(WARM_PART * sessions), AT_ONCE), sessions):  # warm with as many at once as later
        dropped.append(0)
        for first in range(0, count, AT_ONCE):
            if first and not (first // AT_ONCE) % 2:
                await asyncio.sleep(GRACE_S)  # a client may hold 128 leases
            async with using(host, peer, min(AT_ONCE, count - first)):
                dropped[-1] += min(AT_ONCE, count - first)
        gone = time.perf_counter()
        await asyncio.sleep(GRACE_S)  # what others see of the peer is up to two seconds old
        await until(idle, 30.0)
        freed_s = time.perf_counter() - gone
        marks.append(peer.rss_mib())
        tell(f"{marks[-1]:.1f} MiB resident, the last leases gone after {freed_s:.1f} s")
    half_open_s = await _half_open(directory, peer)
    return {
        "sessions_warm": dropped[0], "sessions": dropped[1], "rss_mib_warm": marks[0], "rss_mib": marks[1],
        "rss_growth_percent": 100 * (marks[1] / marks[0] - 1), "freed_s": freed_s, "freed_half_open_s": half_open_s,
        "descriptors_before": descriptors, "descriptors_after": peer.descriptors(),
    }  # fmt: skip


async def _half_open(directory: Directory, peer: Peer) -> float:
    """Seconds until the leases of a client end whose packets no longer come, while its connection stands."""

    async def shows(count: int) -> bool:
        return await sessions_of(directory) == count

    config = HostConfig(identity=Identity.generate(), bootstrap=peer.invite.peers)
    through_daemon = [addr for addr in peer.announcement.addrs if direct_place(addr) is None]
    async with open_host(config) as host, using(host, peer, AT_ONCE, through_daemon):
        await until(partial(shows, AT_ONCE), 10.0)
        daemon = psutil.Process(host.p2p._child.pid)
        daemon.suspend()
        try:
            return await until(partial(shows, 0), 60.0)
        finally:
            daemon.resume()


def main() -> int:
    """Measure, print, write; 1 if memory grows by 5 % or more, or leases are kept too long."""
    parser = argparse.ArgumentParser(prog="scripts/bench memory", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument(
        "--sessions", type=int, default=1000, help="to open and drop after a warm-up of a fifth as many (default 1000)"
    )
    arguments = parser.parse_args()
    found: dict[str, float | int] = {}

    async def go() -> None:
        found.update(await measure(arguments.sessions))

    run(go())
    print_table(["figure", "value"], [[name, f"{value:.1f}"] for name, value in found.items()])
    write_json(arguments.json, found)
    return int(found["rss_growth_percent"] >= 5 or found["freed_s"] > 10 or found["freed_half_open_s"] > 30)


if __name__ == "__main__":
    sys.exit(main())
