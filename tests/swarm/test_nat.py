"""A peer that nothing from outside gets through to: it is relayed, says so, is found, and serves; holes are punched."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from contextlib import AsyncExitStack, nullcontext

import pytest
from lab_swarm import client, generate, greedy, needs_network, processes, save_model
from netlab.lab import Lab
from shoal.dht.foreign import P2PDaemonError, PeerID, p2pd_pb2
from shoal.dht.host import HostConfig, open_host
from shoal.dht.maddr import endpoint, is_relayed
from shoal.dht.reach import DialBack, open_reachable

from tests.steadiness import in_time

pytestmark = [pytest.mark.swarm, pytest.mark.calm, pytest.mark.timeout(180), needs_network]

STEPS = 12
RELAY = "/libp2p/circuit/relay/0.2.0/hop"
HOLE_S = 10.0  # libp2p tries up to three times


def shoal(lab, *argv):
    """What a command says on host `me`."""
    command = [*lab.command("me"), sys.executable, "-m", "shoal.client.cli.main", *argv, "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout)


def reported(lab, invite):
    """How each peer can be reached, as `shoal status` tells."""
    peers = shoal(lab, "status", "--join", invite)["peers"]
    return {peer["peer"]: (peer["reach"], peer["addrs"]) for peer in peers}


async def test_a_peer_that_accepts_nothing_from_outside_serves(tmp_path):
    folder = save_model(tmp_path / "tiny")
    with Lab("rate=100Mbit rtt=20ms boot open me:inbound=no home:inbound=no") as lab:
        async with processes(lab, folder, {"home": "0:2", "open": "2:4"}) as (invite, peers):
            told = await asyncio.to_thread(reported, lab, invite)
            assert told[peers["open"][0]][0] == "direct"
            reach, addrs = told[peers["home"][0]]
            assert reach == "relayed"
            assert all(is_relayed(maddr) for maddr in addrs)
            told = await asyncio.to_thread(shoal, lab, "doctor", "--join", invite)
            found = {check["name"]: check for check in told["checks"]}
            assert found["reach"]["text"].startswith("relayed")
            assert "1 relayed" in found["peers"]["text"]
            assert found["peers"]["state"] == "ok"
            async with client(lab, folder, invite) as (joined, model):
                await joined.wait_covered(30)
                tokens, stats = await generate(joined, model, STEPS)
        assert tokens == greedy(folder, STEPS)
        in_time(stats.repairs == 0, stats)
        assert lab.stats()["blocked"] > 0


async def test_without_a_relay_a_closed_host_listens_as_before(monkeypatch):
    async def closed(_host, _nodes):
        return [DialBack(False, "11.0.2.1")]

    monkeypatch.setattr("shoal.dht.reach.ask_reach", closed)
    monkeypatch.setattr("shoal.dht.host.RELAY_TIMEOUT_S", 1.0)
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(open_host(HostConfig(reachability="private")))  # relays for nobody
        host = await stack.enter_async_context(open_reachable(HostConfig(bootstrap=node.maddrs)))
        assert (host.relayed, host.reach) == (False, "unknown")
        await node.connect(host.peer_id, host.maddrs)


@pytest.mark.parametrize(("announce", "relays"), [((), False), (("/ip4/11.0.0.1/tcp/4001",), True)])
async def test_who_is_met_on_this_machine_alone_is_no_relay(announce, relays):
    """Its table of the Internet's networks would be two thirds of a daemon's work at its start."""
    async with AsyncExitStack() as stack:
        there = await stack.enter_async_context(open_host(HostConfig()))
        host = await stack.enter_async_context(open_host(HostConfig(bootstrap=there.maddrs, announce=announce)))
        wanted = p2pd_pb2.StreamOpenRequest(peer=PeerID.from_base58(host.peer_id).to_bytes(), proto=[RELAY])
        asked = there.p2p.ask(p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=wanted))
        with nullcontext() if relays else pytest.raises(P2PDaemonError, match="protocol"):
            await asked


async def addrs_at(host, peer_id):
    """Addresses of a host's connections to a peer."""
    return [str(maddr) for peer in await host.p2p.list_peers() if str(peer.peer_id) == peer_id for maddr in peer.addrs]


@pytest.mark.alone  # both sides' first packets must pass one another on the way, and libp2p tries three times at most
@pytest.mark.parametrize(
    ("hosts", "direct"),
    [
        ("x:inbound=no y:inbound=no", True),
        ("home:nat=yes x@home office:nat=yes y@office", True),
        ("home:nat=yes x@home cafe:nat=symmetric y@cafe", False),
    ],
    ids=["firewalls", "routers", "symmetric"],
)
async def test_two_closed_hosts_get_a_direct_connection_where_their_routers_allow_it(hosts, direct):
    """Through a hole; libp2p needs to have been seen at one address by four others first."""
    with Lab(f"rtt=20ms n1 n2 n3 n4 {hosts}") as lab:
        async with AsyncExitStack() as stack:

            async def up(name, **options):
                with lab.inside(name):
                    return await stack.enter_async_context(open_host(HostConfig(listen=lab.hosts[name], **options)))

            maddrs = ()
            for number in range(1, 5):
                maddrs += (await up(f"n{number}", reachability="public", bootstrap=maddrs)).maddrs
            x, y = [await up(name, relayed=True, bootstrap=maddrs) for name in ("x", "y")]
            assert (x.reach, y.reach) == ("relayed", "relayed")
            assert any(map(is_relayed, y.maddrs))
            await x.connect(y.peer_id, y.maddrs)
            found, deadline = await addrs_at(x, y.peer_id), time.monotonic() + HOLE_S
            while direct and not any(map(endpoint, found)) and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
                found = await addrs_at(x, y.peer_id)
            assert any(map(endpoint, found)) == direct, found
            assert direct or any(map(is_relayed, found))
