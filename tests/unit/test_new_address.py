"""A machine that is given another IP address while it serves: what others are told of it from then on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from shoal.dht import directory as directory_module
from shoal.dht import nearby as nearby_module
from shoal.dht import reach as reach_module
from shoal.dht.directory import DHTDirectory
from shoal.dht.envelope import Envelope
from shoal.dht.host import Host
from shoal.dht.identity import Identity
from shoal.dht.invite import Invite
from shoal.dht.maddr import direct_maddr, pack
from shoal.dht.nearby import meet_nearby
from shoal.dht.node import Sighting
from shoal.dht.reach import DialBack, find_reach
from shoal.dht.record import parse
from shoal.peer.announcer import REACH_PERIOD_S, Announcer, Facts
from shoal.peer.join import Net
from shoal.peer.serve import _Life

from tests.sim.clock import run

ME = Identity.generate()
OLD, NEW, OUTSIDE, LOOPBACK = "198.51.100.10", "198.51.100.77", "203.0.113.5", "127.0.0.1"
DIRECT_PORT = 4003
FACTS = Facts(ME.peer_id, "r1", "none", "float32", 0.001, 0.002, (), "1", "")


def full(*addresses: str, port: int = 4002) -> tuple[str, ...]:
    return tuple(f"/ip4/{address}/tcp/{port}/p2p/{ME.peer_id}" for address in addresses)


class Machine:
    """Its daemon, asked what addresses it has (None: it is going), and the nodes that dial back to it."""

    def __init__(self, monkeypatch, *addresses: str) -> None:
        self.addresses, self.answers, self.dialled = addresses, [], []
        self._client = self
        monkeypatch.setattr(reach_module, "ask_reach", self._ask)

    def host(self, **facts) -> Host:
        return Host(self, ME, full(*self.addresses), asyncio.Event(), **facts)

    async def dial(self, _peer, maddrs):
        self.dialled += maddrs

    async def part(self, _peer):
        pass

    async def list_peers(self):
        return ()

    async def identify(self):
        if self.addresses is None:
            raise EOFError
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
    host = machine.host()
    reach_module.note_answers(host, [DialBack(True, OUTSIDE)])
    assert host.maddrs == full(OUTSIDE, "192.168.1.2")
    assert await find_reach(host, ()) == ("unknown", host.maddrs), "nobody tells just now"
    machine.addresses, machine.answers = ("192.168.7.7",), [DialBack(False, OUTSIDE), DialBack(True, NEW)]
    assert await find_reach(host, ()) == ("direct", full(NEW, "192.168.7.7"))
    machine.answers = []
    assert await find_reach(host, ()) == ("unknown", full(NEW, "192.168.7.7")), "it is not forgotten either"
    machine.addresses, machine.answers = (NEW, "192.168.7.7"), [DialBack(True, NEW)]
    assert await find_reach(host, ()) == ("direct", full(NEW, "192.168.7.7")), "and once if it is the machine's own"


@pytest.mark.parametrize("told", [True, False])
async def test_what_the_owner_named_is_all_that_is_told(monkeypatch, told):
    machine = Machine(monkeypatch, "192.0.2.7")
    machine.answers = [DialBack(True, OUTSIDE)]
    expected = full("192.0.2.7") if told else full(OUTSIDE, "192.0.2.7")
    assert await find_reach(machine.host(told=told), ()) == ("direct", expected)


async def test_a_peer_that_moves_to_other_blocks_tells_its_new_address(monkeypatch):
    """And one that loads them: what is told of both comes from the host as it is now."""
    machine = Machine(monkeypatch, LOOPBACK, OLD)
    net = Net(machine.host(), None, None, (), (direct_maddr(OLD, DIRECT_PORT, ME.peer_id),), (4002, DIRECT_PORT))
    life = SimpleNamespace(
        model=SimpleNamespace(checkpoint=SimpleNamespace(revision="r1"), spec=SimpleNamespace(n_blocks=6)),
        config=SimpleNamespace(quantization="none", name=""), dtype="float32", room=SimpleNamespace(blocks=6),
        _speed=SimpleNamespace(decode_s=0.001, prefill_s=0.002),
    )  # fmt: skip
    machine.addresses, machine.answers = (LOOPBACK, NEW), [DialBack(True, NEW)]
    await net.look()
    expected = (direct_maddr(NEW, DIRECT_PORT, ME.peer_id), *full(NEW))
    facts = _Life._facts(life, net)
    assert (facts.addrs, facts.reach, _Life._seat(life, net).addrs) == (expected, "direct", expected)


async def test_a_neighbour_of_the_network_that_this_machine_is_in_now_is_met(monkeypatch):
    """A client's machine: nobody has looked where it is since it joined."""

    async def proves(*_):
        return True

    monkeypatch.setattr(nearby_module, "proves", proves)
    other, relay = (Identity.generate().peer_id for _ in range(2))
    relayed = f"/ip4/198.51.100.1/tcp/4001/p2p/{relay}/p2p-circuit/p2p/{other}"
    machine = Machine(monkeypatch, LOOPBACK, "192.168.1.2")
    host = machine.host()

    async def meet(there: str) -> bool:
        """Whether a peer at that address was dialled there."""
        machine.dialled.clear()
        await meet_nearby(host, other, [relayed, f"/ip4/{there}/tcp/7/p2p/{other}"])
        return machine.dialled == [pack(f"/ip4/{there}/tcp/7")]

    before, after = "192.168.1.3", "192.168.7.3"
    assert [await meet(before), await meet(after)] == [True, False]
    machine.addresses = (LOOPBACK, "192.168.7.7")
    assert [await meet(before), await meet(after)] == [False, True]


class Shelf:
    """A node of the directory on `host` that finds what is `held` and takes whatever is offered."""

    def __init__(self, host: Host) -> None:
        self.host, self.held, self.taken = host, set(), []

    async def look(self, _key):
        return [Sighting(set(self.held), [])]

    async def store(self, _key, raw, _nearest):
        self.taken.append(raw)

    def now(self) -> float:
        return 1000.0

    def told(self) -> str:
        """Where the newest record says that its peer listens."""
        return Envelope.decode(parse(self.taken[-1]).body).maddr


def directory_at(shelf: Shelf) -> DHTDirectory:
    return DHTDirectory(shelf, ME, Invite("default", "demo", ()), "r1")


async def test_a_twin_is_looked_for_where_this_machine_is_now(monkeypatch):
    """A record tells where its peer listens, so that who starts a second one with the same key learns it there: at an
    address that leads here from other machines, too."""
    machine = Machine(monkeypatch, LOOPBACK, OLD)
    shelf = Shelf(machine.host())
    directory = directory_at(shelf)
    for address in (OLD, NEW):
        machine.addresses = (LOOPBACK, address)
        await directory.announce(b"", 60)
        assert shelf.told() == f"/ip4/{address}/tcp/4002"
        machine.addresses = (LOOPBACK,)
        await directory.announce(b"", 60)
        assert shelf.told() == f"/ip4/{address}/tcp/4002", "it is in no network just now"


async def test_an_earlier_run_at_the_address_that_this_machine_has_now_is_no_twin(monkeypatch):
    asked = []

    async def answers_at(_me, maddr):
        asked.append(maddr)
        return False

    monkeypatch.setattr(directory_module, "answers_at", answers_at)
    machine = Machine(monkeypatch, LOOPBACK, NEW)
    earlier = Shelf(machine.host())
    await directory_at(earlier).announce(b"", 60)
    machine.addresses = (LOOPBACK, OLD)
    shelf = Shelf(machine.host())
    shelf.held = set(earlier.taken)
    machine.addresses = (LOOPBACK, NEW)
    await directory_at(shelf).announce(b"", 60)
    assert asked == []


async def test_a_daemon_that_is_going_does_not_end_the_announcing(monkeypatch):
    machine = Machine(monkeypatch, LOOPBACK, OLD)
    shelf = Shelf(machine.host())
    machine.addresses = None
    await directory_at(shelf).announce(b"", 60)
    assert shelf.told() == f"/ip4/{OLD}/tcp/4002"
