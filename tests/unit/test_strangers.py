"""What others on the machine or in the directory may lay before us: files, endless nesting, requests given up."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from shoal.client.cli.complaint import complaint
from shoal.dht import host as host_module
from shoal.dht.allowance import LIST_CREDIT_S, LIST_EVERY_S, LIST_MOST_S, LIST_PAUSE, LIST_TIMEOUT_S
from shoal.dht.daemon import Handling
from shoal.dht.folder import sweep
from shoal.dht.foreign import CALL_ERRORS, P2PContext, P2PDaemonError, PeerID, dht_pb2
from shoal.dht.host import HostConfig, open_host
from shoal.dht.identity import Identity
from shoal.dht.protocol import ShoalDHT, node_id_of
from shoal.dht.table import LimitedTable
from shoal.peer.errors import HopRefused, Reason

from tests.sim.clock import run

ME, *STRANGERS = (PeerID.from_base58(Identity.generate().peer_id) for _ in range(4))


def test_a_link_in_a_folder_that_looks_like_ours_leads_to_no_file_of_ours(tmp_path):
    mine, trap = tmp_path / "mine", tmp_path / "shoal-host-x"
    mine.write_text("what I need")
    trap.mkdir()
    (trap / "lock").symlink_to(mine)
    (tmp_path / "shoal-host-y").symlink_to(tmp_path)
    left = tmp_path / "shoal-host-z"
    left.mkdir()
    (left / "lock").touch()
    for folder in (trap, left):
        os.utime(folder, (time.time() - 3600,) * 2)
    sweep(tmp_path)
    assert mine.read_text() == "what I need"
    assert not left.exists()


async def test_a_request_that_was_given_up_is_forgotten():
    handling, over = Handling(), asyncio.Event()

    async def answer() -> None:
        await over.wait()

    for number in range(3):
        handling[number] = asyncio.create_task(answer())
    handling[0].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [*handling] == [1, 2]
    over.set()
    await asyncio.sleep(0.01)
    assert not handling


@pytest.mark.parametrize("answer", [b"\xff\xff\xff\xff", None])
def test_an_answer_that_is_no_message_is_a_failed_call(answer):
    with pytest.raises(CALL_ERRORS):
        dht_pb2.FindResponse.FromString(answer)


def test_anothers_words_write_nothing_but_their_line():
    said = complaint(HopRefused("p", Reason.BUSY, "p refused: \x1b[2J\x1b]0;owned\x07 no\nroom\u202e"))
    assert said is not None
    assert said.isprintable()
    assert "no room" in said


class Asked:
    """A daemon whose lists take a while, and a node of the directory over the host that it makes."""

    def __init__(self, monkeypatch, takes_s: float) -> None:
        self.takes_s, self.connected, self.lists, self.dead = takes_s, set(), 0, False
        self.p2p = SimpleNamespace(list_peers=self._list, _visible_maddrs=(), died=asyncio.Event(), shutdown=self._end)

        async def start(*_):
            return self.p2p

        monkeypatch.setattr(host_module, "_start_daemon", start)

    async def _end(self):
        pass

    async def _list(self):
        self.lists += 1
        found = [SimpleNamespace(peer_id=peer, addrs=("/ip4/127.0.0.1/tcp/1",)) for peer in self.connected]
        await asyncio.sleep(self.takes_s)
        if self.dead:
            raise P2PDaemonError("it has died")
        return found

    @asynccontextmanager
    async def node(self):
        async with open_host(HostConfig()) as host:
            node = object.__new__(ShoalDHT)
            node.p2p, node.clock, node._shunned = host.p2p, SimpleNamespace(now=lambda _steady: 0.0), {}
            node.node_info, node.node_id = dht_pb2.NodeInfo(), node_id_of(ME)
            node.routing_table = LimitedTable(node.node_id, 20, 5)
            yield node


async def ping(node: ShoalDHT, asker: PeerID) -> None:
    """A request of somebody who says that it is a node too."""
    request = dht_pb2.PingRequest(peer=dht_pb2.NodeInfo(node_id=b"n" * 20))
    assert (await node.rpc_ping(request, P2PContext("", ME, asker))).available


@pytest.mark.parametrize(
    ("takes_s", "every_s"), [(0.001, LIST_EVERY_S), (0.02, 0.02 * LIST_PAUSE), (1.0, LIST_MOST_S)], ids=str
)
def test_strangers_requests_share_what_the_daemon_is_asked(monkeypatch, takes_s, every_s):
    """None of them is in the routing table afterwards, so that each time its place is asked for anew."""
    asked, period_s = Asked(monkeypatch, takes_s), 8.0

    async def main():
        async def insist(node, asker):
            while True:
                await ping(node, asker)

        async def hurry(node):
            async with asyncio.TaskGroup() as tasks:
                while True:
                    tasks.create_task(ping(node, STRANGERS[0]))
                    await asyncio.sleep(0.01)

        async with asked.node() as node:
            work = [asyncio.create_task(insist(node, asker)) for asker in STRANGERS]
            work.append(asyncio.create_task(hurry(node)))
            await asyncio.sleep(period_s)
            for task in work:
                task.cancel()
            await asyncio.wait(work)
            return asked.lists, node.routing_table.peers()

    lists, known = run(main())
    assert lists == pytest.approx((period_s + LIST_CREDIT_S) / (takes_s + every_s), rel=0.05, abs=1.1)
    assert known == []


def test_a_newcomer_is_in_the_list_that_its_request_waits_for(monkeypatch):
    """Also if another list is under way when it connects; and its answer waits no longer than for those two."""
    asked = Asked(monkeypatch, 0.01)

    async def main():
        loop = asyncio.get_running_loop()
        async with asked.node() as node:
            for stranger in STRANGERS:
                earlier = asyncio.create_task(node.addresses())
                await asyncio.sleep(0.005)
                asked.connected.add(stranger)
                began = loop.time()
                await ping(node, stranger)
                assert stranger in node.routing_table.peers()
                assert loop.time() - began < 0.005 + 0.01 + 0.001
                assert str(stranger) not in await earlier
                await asyncio.sleep(1.0)
            return asked.lists

    assert run(main()) == 2 * len(STRANGERS)


def test_a_daemon_that_dies_or_says_nothing_fails_all_who_wait_and_nobody_after_them(monkeypatch):
    asked = Asked(monkeypatch, 0.01)

    async def main():
        async with asked.node() as node:
            for asked.dead, asked.takes_s in ((True, 0.01), (False, 3600.0)):
                given_up = asyncio.create_task(node.addresses())
                await asyncio.sleep(0.001)
                given_up.cancel()
                assert await asyncio.gather(*(node.addresses() for _ in range(3))) == [{}] * 3
            asked.dead, asked.takes_s, asked.connected = False, 0.01, {STRANGERS[0]}
            assert asyncio.get_running_loop().time() < 2 * LIST_TIMEOUT_S + 0.1  # of who gave up, and of these
            return await node.addresses()

    assert run(main()) == {str(STRANGERS[0]): "/ip4/127.0.0.1/tcp/1"}
