"""Who has many identities in one network keeps nobody elsewhere from naming a hop's address, nor takes all dials."""

from __future__ import annotations

import asyncio

import pytest
from shoal.peer.dialling import ALL, NETWORK, NETWORK_S, DialBudget, NetworkDials

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.network import SimTransport
from tests.sim.rogues import carried, mislead, strangers
from tests.sim.swarm import N_BLOCKS, world

HERE, CROWD = "11.9.9.0/24", "11.6.6.0/24"


async def misled(monkeypatch, names: int, crowd: str | None) -> tuple[list[int], int]:
    """A client's tokens, and how often it had to carry what its hops could not send one another, while so many
    identities of a network name wrong addresses of the second hop."""

    def whence(_transport, name: str) -> str | None:
        return crowd if name.startswith("rogue") else HERE

    usual = SimTransport.connect

    async def connect(self, peer_id, addrs):
        if self.peer_id == "p0" and any("192.0.2." not in addr for addr in addrs):
            await asyncio.Event().wait()
        await asyncio.sleep(0.2)
        return await usual(self, peer_id, addrs)

    monkeypatch.setattr(SimTransport, "whence", whence)
    monkeypatch.setattr(SimTransport, "connect", connect)
    async with world(3, [(0, 3), (3, 6)]) as it, it.client() as swarm:
        rogues = await strangers(it, names)
        misleading = asyncio.create_task(mislead(rogues, every_s=0.002))
        await asyncio.sleep(0.5)
        tokens, lost = await carried(swarm, 20)
        misleading.cancel()
        for _, rogue in rogues:
            rogue.close()
        return tokens, lost


@pytest.mark.parametrize("names", [40, 100])
def test_many_identities_of_one_network_leave_room_for_others_ways(monkeypatch, names):
    async def main() -> tuple[list[int], int]:
        return await misled(monkeypatch, names, CROWD)

    assert run(main()) == (toy.generate([1, 2, 3], N_BLOCKS, 20), 0)


def test_one_network_does_not_name_all_that_may_be_dialled():
    all_of_them, of_networks, now, granted = DialBudget(), NetworkDials(), 0.0, 0
    for number in range(3000):
        now += 0.01
        addrs = tuple(f"/ip4/11.1.{number % 250}.{port}/tcp/1" for port in range(1, 9))
        granted += len(all_of_them.grant(f"identity {number}", of_networks.grant(CROWD, addrs, now), now))
    assert NETWORK <= granted <= NETWORK + now * NETWORK_S + 1 < ALL
    addrs = tuple(f"/ip4/11.2.2.{port}/tcp/1" for port in range(1, 9))
    assert all_of_them.grant("client", of_networks.grant(HERE, addrs, now), now) == addrs


def test_64_clients_behind_one_address_name_what_they_need():
    """Each opens a session over the same thirty hops, eight addresses each, of which a pool asks for once."""
    of_networks = NetworkDials()
    for hop in range(30):
        addrs = tuple(f"/ip4/11.{hop}.2.{port}/tcp/1" for port in range(1, 9))
        assert of_networks.grant(HERE, addrs, 1.0) == addrs


def test_names_of_machines_count_as_the_addresses_that_they_may_have():
    budget, granted = DialBudget(), 0
    for number in range(1000):
        addrs = (f"/dns4/x{number}.example.org/tcp/80", f"/dns/y{number}.example.org/tcp/443/p2p/12D3KooWx")
        granted += len(budget.grant("stranger", addrs, 1.0))
    assert granted == 32
    assert budget.grant("another", ("/dns6/machine.example.org/tcp/1",), 1.0)
    assert budget.grant("stranger", ("/ip4/10.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1"), 1.0)
