"""A machine that is given another IP address while it serves: what others are told of it from then on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from shoal.dht import reach as reach_module
from shoal.dht.host import Host
from shoal.dht.identity import Identity
from shoal.dht.maddr import direct_maddr
from shoal.dht.reach import DialBack, find_reach
from shoal.peer.announcer import REACH_PERIOD_S, Announcer, Facts
from shoal.peer.join import Net

from tests.sim.clock import run

ME = Identity.generate()
OLD, NEW, OUTSIDE, LOOPBACK = "198.51.100.10", "198.51.100.77", "203.0.113.5", "127.0.0.1"
DIRECT_PORT = 4003
FACTS = Facts(ME.peer_id, "r1", "none", "float32", 0.001, 0.002, (), "1", "")


def full(*addresses: str, port: int = 4002) -> tuple[str, ...]:
    return tuple(f"/ip4/{address}/tcp/{port}/p2p/{ME.peer_id}" for address in addresses)


class Machine:
    """Its daemon, asked what addresses it has, and the nodes that dial back to it."""

    def __init__(self, monkeypatch, *addresses: str) -> None:
        self.addresses, self.answers = addresses, []
        monkeypatch.setattr(reach_module, "ask_reach", self._ask)

    def host(self, **facts) -> Host:
        return Host(SimpleNamespace(_client=self), ME, full(*self.addresses), asyncio.Event(), **facts)

    async def identify(self):
        return ME.peer_id, [maddr.partition("/p2p/")[0] for maddr in full(*self.addresses)]

    async def _ask(self, _host, _nodes):
        return self.answers


def test_the_new_address_is_announced_in_place_of_the_old_one(monkeypatch):
    """The one for direct streams too, where others got there at the start."""
    machine = Machine(monkeypatch, LOOPBACK, OLD)
    direct = (direct_maddr(OLD, DIRECT_PORT, ME.peer_id),)

    async def main():
        host, announced = machine.host(), []
        nets = [Net(host, None, None, (), addrs, (4002, DIRECT_PORT)) for addrs in (direct, ())]
        peers = [Announcer(None, None, replace(FACTS, addrs=net.addrs)) for net in nets]
        work = [asyncio.create_task(peer.follow(net.look)) for peer, net in zip(peers, nets, strict=True)]
        for _ in range(2):
            await asyncio.sleep(REACH_PERIOD_S + 1)
            announced.append([(peer.facts.reach, peer.facts.addrs) for peer in peers])
            machine.addresses, machine.answers = (LOOPBACK, NEW), [DialBack(True, NEW)]
        for task in work:
            task.cancel()
        return announced

    before, after = run(main())
    assert before == [("unknown", (*direct, *full(OLD))), ("unknown", full(OLD))]
    assert after == [("direct", (direct_maddr(NEW, DIRECT_PORT, ME.peer_id), *full(NEW))), ("direct", full(NEW))]


async def test_a_machine_without_a_network_goes_on_telling_what_it_told(monkeypatch):
    machine = Machine(monkeypatch, LOOPBACK, OLD)
    host = machine.host()
    machine.addresses = (LOOPBACK,)
    assert await find_reach(host, ()) == ("unknown", full(OLD))


async def test_an_address_that_only_others_see_is_told_until_they_see_another(monkeypatch):
    machine = Machine(monkeypatch, "192.168.1.2")
    host = reach_module._with_answers(machine.host(), [DialBack(True, OUTSIDE)])
    assert host.maddrs == full(OUTSIDE, "192.168.1.2")
    assert await find_reach(host, ()) == ("unknown", host.maddrs), "nobody tells just now"
    machine.addresses, machine.answers = ("192.168.7.7",), [DialBack(False, OUTSIDE), DialBack(True, NEW)]
    assert await find_reach(host, ()) == ("direct", full(NEW, "192.168.7.7"))
    machine.addresses = (NEW, "192.168.7.7")
    assert await find_reach(host, ()) == ("direct", full(NEW, "192.168.7.7")), "and once if it is the machine's own"


@pytest.mark.parametrize("told", [True, False])
async def test_what_the_owner_named_is_all_that_is_told(monkeypatch, told):
    machine = Machine(monkeypatch, "192.0.2.7")
    machine.answers = [DialBack(True, OUTSIDE)]
    expected = full("192.0.2.7") if told else full(OUTSIDE, "192.0.2.7")
    assert await find_reach(machine.host(told=told), ()) == ("direct", expected)
