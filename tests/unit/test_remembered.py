"""Nodes that were met before are remembered in a file; a look-up that is called off ends as one."""

import asyncio
import os
import random

import pytest
from shoal.dht.foreign import DHTID, PeerID
from shoal.dht.identity import Identity
from shoal.dht.node import Node
from shoal.dht.protocol import Found, Told
from shoal.dht.remembered import MAX_REMEMBERED, Remembered


def maddrs(count):
    ids = [Identity.generate().peer_id for _ in range(count)]
    return {peer_id: f"/ip4/127.0.0.1/tcp/{1000 + index}/p2p/{peer_id}" for index, peer_id in enumerate(ids)}


def test_the_newest_come_first_and_the_oldest_are_forgotten():
    known = maddrs(MAX_REMEMBERED + 3)
    memory = Remembered()
    for peer_id, maddr in known.items():
        memory.add({peer_id: maddr})
    memory.add(dict(list(known.items())[10:11]))
    assert memory.maddrs()[0] == list(known.values())[10]
    assert len(memory.maddrs()) == MAX_REMEMBERED
    assert list(known.values())[2] not in memory.maddrs()


def test_the_next_run_knows_them_and_skips_what_is_no_address(tmp_path):
    path, known = tmp_path / "swarms" / "ab", maddrs(3)
    Remembered(path).add(known)
    assert Remembered(path).maddrs() == list(reversed(known.values()))
    (file,) = path.parent.iterdir()
    file.write_bytes(b"/ip4/1.2.3.4\n\xff\xfe\n../../etc\n" + "\n".join(known.values()).encode() + b"\n/p2p/x\n")
    assert Remembered(path).maddrs() == list(reversed(known.values()))
    assert [*path.parent.iterdir()] == [file]


@pytest.mark.parametrize("there", [True, False])
def test_nobody_else_reads_whom_we_met_nor_which_swarm_it_is(tmp_path, there):
    namespace = "ab" * 32
    path = tmp_path / "swarms" / namespace
    if there:
        path.parent.mkdir(mode=0o755)
    Remembered(path).add(maddrs(1))
    (file,) = path.parent.iterdir()
    assert [entry.stat().st_mode & 0o777 for entry in (path.parent, file)] == [0o700, 0o600]
    assert namespace not in file.name
    assert namespace not in file.read_text()
    assert Remembered(path.with_name("cd" * 32)).maddrs() == [], "another swarm's is another file"


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    memory = Remembered(tmp_path / "file" / "ab")
    memory.add(maddrs(1))
    assert len(memory.maddrs()) == 1


class Endless:
    """A protocol in which every node knows five others, and answers after a moment."""

    node_id = DHTID.generate()
    store = property(lambda self: self)
    routing_table = property(lambda self: self)

    def get(self, _key, _now):
        return set()

    def get_nearest_neighbors(self, _key, _count):
        return [(DHTID.generate(), PeerID(os.urandom(34))) for _ in range(20)]

    def now(self):
        return 0.0

    async def call_few(self, _peer, keys):
        await asyncio.sleep(random.random() * 0.01)
        return [Found([], [PeerID(os.urandom(34)) for _ in range(5)]) for _ in keys]

    async def call_digests(self, _peer, keys):
        await asyncio.sleep(random.random() * 0.01)
        return [Told(frozenset(), [PeerID(os.urandom(34)) for _ in range(5)]) for _ in keys]


class Alone:
    """A host of that name."""

    class p2p:  # noqa: N801
        peer_id = PeerID(b"x" * 34)


async def test_a_look_up_that_is_called_off_at_any_moment_is_cancelled_and_nothing_else():
    for _ in range(25):
        node = Node(Alone(), Endless(), (), Remembered())
        task = asyncio.get_running_loop().create_task(node.look(*(os.urandom(20) for _ in range(4))))
        await asyncio.sleep(random.random() * 0.015)
        done = task.done()
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        assert done or isinstance(result, asyncio.CancelledError), result
    assert asyncio.all_tasks() == {asyncio.current_task()}
