"""Addresses that strangers name: what of them is dialled, how often, and what is learned from a dial that fails."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace

import pytest
from shoal.dht.foreign import P2PDaemonError
from shoal.dht.host import Host
from shoal.dht.identity import Identity
from shoal.dht.knocking import BURST, NEAR_S
from shoal.dht.maddr import direct_maddr
from shoal.dht.named import Scope, Ways, resolved, scope_of, target, ways
from shoal.peer import transport as transport_module
from shoal.peer.errors import HopClosed
from shoal.peer.transport import VAIN, VAIN_S, P2PTransport

from tests.sim.clock import run

ME, *OTHERS = (Identity.generate() for _ in range(3))
PEER = OTHERS[0].peer_id
AWAY = ("/ip4/11.0.0.9/tcp/4001/p2p/X",)
HOME = ("/ip4/127.0.0.1/tcp/4001/p2p/Y", "/ip4/192.168.7.5/tcp/4001/p2p/Y")
LAN = ("/ip4/10.1.0.1/tcp/4001/p2p/X",)


@pytest.mark.parametrize(
    "maddr",
    [
        "/ip4/11.0.0.1/udp/53/quic-v1",
        "/ip4/11.0.0.1/tcp/80/ws",
        "/ip4/11.0.0.1/tcp/0",
        "/ip4/11.0.0.1/tcp/65536",
        "/ip4/11.0.0.1/tcp/1/p2p/X/p2p-circuit/ip4/11.0.0.2/tcp/1",
        "/ip6/fe80::1%eth0/tcp/1",
        "/ip4/::1/tcp/1",
        "/ip4/11.0.0.256/tcp/1",
        "/dns4/a.example/tcp/1",
        "/unix/run/docker.sock",
        "",
    ],
)
def test_no_peer_has_such_an_address(maddr):
    assert target(maddr) is None
    assert ways([maddr], HOME, AWAY) == Ways((), ())


def test_where_addresses_lead():
    tails = ("", "/p2p/X", "/tls/p2p/X", "/p2p/R/p2p-circuit", "/p2p/R/p2p-circuit/p2p/X")
    assert {str(target(f"/ip4/11.0.0.1/tcp/9{tail}")) for tail in tails} == {"11.0.0.1"}
    disguised = ("::ffff:192.168.0.1", "64:ff9b::c0a8:1", "2002:c0a8:1::")
    assert {str(target(f"/ip6/{address}/tcp/9")) for address in disguised} == {"192.168.0.1"}


@pytest.mark.parametrize(
    "inside",
    [
        "127.0.0.1",
        "127.9.9.9",
        "10.0.0.1",
        "192.168.8.1",
        "172.17.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fd00::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:a00:1::",
    ],
)
def test_a_swarm_on_the_internet_dials_nobody_s_private_addresses(inside):
    version = 6 if ":" in inside else 4
    for tail in ("", "/p2p/X", "/tls/p2p/X", "/p2p/R/p2p-circuit"):
        assert ways([f"/ip{version}/{inside}/tcp/22{tail}"], HOME, AWAY) == Ways((), ())


def test_neighbours_are_still_met():
    near, far = "/ip4/192.168.7.9/tcp/1/p2p/X", "/ip4/11.0.0.1/tcp/1/p2p/X"
    assert ways([near, far], HOME, AWAY) == Ways((far,), (near,))


def test_a_local_swarm_needs_no_option():
    loopback, lan, far = "/ip4/127.0.0.1/tcp/1", "/ip4/10.9.9.9/tcp/1", "/ip4/11.0.0.1/tcp/1"
    assert ways([loopback, lan, far], HOME, LAN) == Ways((lan, far), ())
    assert ways([loopback], HOME[:1], LAN) == Ways((loopback,), ())  # on the machine of the node, and only there
    for ours, nodes in ((HOME[:1], ()), (HOME, HOME[:1]), (HOME, HOME)):
        assert ways([loopback, lan], ours, nodes) == Ways((loopback, lan), ())


def test_how_far_a_swarm_reaches():
    assert scope_of(HOME, AWAY) is scope_of((), ()) is scope_of(HOME, ("/dns4/a.example/tcp/1",)) is Scope.INTERNET
    assert scope_of(AWAY, LAN) is scope_of(HOME, ()) is Scope.NETWORK
    assert scope_of(AWAY, HOME[:1]) is Scope.MACHINE


def test_names_are_looked_up_before_they_are_judged():
    names = [f"/{kind}/localhost/tcp/7/p2p/X" for kind in ("dns4", "dns", "dns6")]
    found = asyncio.run(resolved([*AWAY, *names]))
    assert set(found) <= {*AWAY, "/ip4/127.0.0.1/tcp/7/p2p/X", "/ip6/::1/tcp/7/p2p/X"}
    assert "/ip4/127.0.0.1/tcp/7/p2p/X" in found
    assert ways(found, HOME, AWAY) == Ways(AWAY, ())


class Daemon:
    """libp2p's, which reaches nobody; `dialled`: how many addresses it was given."""

    def __init__(self) -> None:
        self.dialled = 0
        self._client = SimpleNamespace(control=SimpleNamespace(daemon_connector=self))

    async def dial(self, _peer, maddrs):
        self.dialled += len(maddrs)
        raise P2PDaemonError("nobody there")

    async def open_connection(self):
        raise OSError


def transport(ours, nodes) -> P2PTransport:
    return P2PTransport(Host(Daemon(), ME, ours, asyncio.Event(), nodes=nodes))


@pytest.mark.parametrize(("nodes", "knocks"), [(AWAY, 0), (HOME[:1], 2)])
async def test_who_names_a_port_of_this_machine_gets_no_knock_at_it(nodes, knocks):
    with socket.socket() as service:
        service.bind(("127.0.0.1", 0))
        service.listen()
        service.settimeout(0.1)
        port, came = service.getsockname()[1], 0
        calls = transport(HOME, nodes)
        for name in OTHERS:
            addrs = [direct_maddr("127.0.0.1", port, name.peer_id), f"/dns4/localhost/tcp/{port}/tls/p2p/X"]
            calling = asyncio.create_task(calls.connect(name.peer_id, addrs[:1] if knocks else addrs))
            await asyncio.sleep(0.1)
            try:
                service.accept()[0].close()
                came += 1
            except TimeoutError:
                pass
            with pytest.raises(HopClosed, match="cannot open a stream"):
                await calling
        assert came == knocks
        assert calls._host.p2p.dialled == 0


@pytest.mark.parametrize("far", ["refused", "silent"])
def test_libp2p_is_shown_the_neighbours_where_nothing_else_leads_there(far):
    """A router may not let its own network back in by its outer address."""

    class Near(Daemon):
        async def dial(self, _peer, maddrs):
            self.dialled += len(maddrs)
            if len(maddrs) == 2:
                await asyncio.sleep(0 if far == "refused" else 60)
                raise P2PDaemonError("nobody there")

    async def main():
        daemon = Near()
        host = Host(daemon, ME, HOME, asyncio.Event(), nodes=AWAY)
        await host.connect(PEER, ["/ip4/11.0.0.1/tcp/1", "/ip4/11.0.0.2/tcp/1"], ["/ip4/192.168.7.9/tcp/1"])
        return daemon.dialled

    assert run(main()) == 3


@pytest.mark.parametrize("listens", [True, False, None])
def test_a_neighbour_that_is_none_is_told_after_the_same_time_whatever_is_there(monkeypatch, listens):
    """Another service, nothing, or no machine at all."""

    async def dial(_identity, _peer_id, _address, _port):
        await asyncio.sleep({True: 0.02, False: 0.001, None: 60.0}[listens])
        raise OSError

    monkeypatch.setattr(transport_module, "dial", dial)

    async def main():
        loop, calls = asyncio.get_running_loop(), transport(HOME, AWAY)
        took_s = []
        for port in (22, 22, 80):
            began = loop.time()
            with pytest.raises(HopClosed) as told:
                await calls.connect(PEER, [direct_maddr("192.168.7.9", port, PEER)])
            took_s.append(round(loop.time() - began, 3))
        return took_s, str(told.value)

    took_s, told = run(main())
    assert took_s == [NEAR_S, 0.0, NEAR_S]  # the second time it is not tried at all
    assert told == "cannot open a stream"


def test_our_own_network_cannot_be_searched(monkeypatch):
    seen = []

    async def dial(_identity, _peer_id, address, port):
        seen.append((address, port))
        raise OSError

    monkeypatch.setattr(transport_module, "dial", dial)

    async def main():
        calls = transport(HOME, AWAY)
        for port in range(1, 60):
            addrs = [direct_maddr("192.168.7.9", 8 * port + n, PEER) for n in range(8)]
            with pytest.raises(HopClosed):
                await calls.connect(PEER, addrs)
        return asyncio.get_running_loop().time()

    took_s = run(main())
    assert BURST <= len(seen) <= BURST + 0.1 * took_s + 1


def test_one_machine_of_the_internet_is_not_dialled_in_vain_without_end(monkeypatch):
    """Records may name sixteen places of it for each of many peers that do not exist; one peer is there in truth."""
    victim, n = "11.5.5.5", 500
    seen, now = [], [0.0]

    async def dial(_identity, peer_id, *place):
        if peer_id == OTHERS[1].peer_id:
            return SimpleNamespace(close=lambda: None)
        seen.append(place)
        raise OSError

    monkeypatch.setattr(transport_module, "dial", dial)
    monkeypatch.setattr(transport_module.time, "monotonic", lambda: now[0])

    async def main():
        calls = transport(HOME, AWAY)
        for number in range(n):
            now[0] += 0.1
            direct = [direct_maddr(victim, 1 + 8 * number + port, PEER) for port in range(8)]
            with pytest.raises(HopClosed):
                await calls.connect(PEER, [*direct, *(addr.partition("/tls")[0] for addr in direct)])
        await calls.connect(OTHERS[1].peer_id, [direct_maddr(victim, 9, OTHERS[1].peer_id)])
        return len(seen) + calls._host.p2p.dialled

    assert VAIN <= run(main()) <= VAIN + n * 0.1 * VAIN_S + n + 16


def test_where_a_peer_was_it_is_asked_whatever_others_say(monkeypatch):
    """And that somebody else is there is no reason to avoid the place for those that are."""
    home = ("11.0.3.3", 7)

    async def dial(_identity, peer_id, *place):
        if (peer_id, place) != (PEER, home):
            raise OSError
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(transport_module, "dial", dial)

    async def main():
        calls = transport(HOME, AWAY)
        with pytest.raises(HopClosed):
            await calls.connect(OTHERS[1].peer_id, [direct_maddr(*home, OTHERS[1].peer_id)])
        await calls.connect(PEER, [direct_maddr(*home, PEER)])
        await calls.connect(PEER, [direct_maddr("11.0.3.4", n, PEER) for n in range(1, 9)])
        await calls.connect(PEER, [])

    run(main())
