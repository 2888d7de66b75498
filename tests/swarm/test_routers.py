"""Peers behind routers that translate addresses: which ways their bytes take, and what status and doctor say."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack

import pytest
from lab_swarm import client, generate, greedy, needs_network, save_model
from netlab.lab import Lab
from shoal.client.cli.children import Children
from shoal.dht.host import HostConfig, open_host
from shoal.dht.invite import Invite
from shoal.dht.maddr import is_relayed
from shoal.dht.node import open_node

from tests.steadiness import in_time

pytestmark = [pytest.mark.swarm, pytest.mark.calm, pytest.mark.timeout(180), needs_network]

STEPS = 12
NETWORK = """
rate=100Mbit rtt=20ms boot n1 n2 n3 me
home:nat=yes p@home  cafe:nat=symmetric q@cafe r@cafe
"""
RELAYS = ("boot", "n1", "n2", "n3")
SPANS = {"p": "0:2", "q": "2:3", "r": "3:4"}


async def shoal(lab, host, *argv):
    """What a command says on a host."""
    command = [*lab.command(host), sys.executable, "-m", "shoal.client.cli.main", *argv, "--json"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    return json.loads((await process.communicate())[0])


async def bootstrap(lab, stack, children):
    """A bootstrap node and three other public nodes, since libp2p dials back for those whom four have seen; the invite
    to all of them."""
    argv = ["bootstrap", "--json", "--model", "tiny", "--host", lab.hosts["boot"], "--port", "4001"]
    first = await (await children.start("bootstrap", argv, within=lab.command("boot"))).event("invite")
    maddrs = tuple(first["maddrs"])
    for name in RELAYS[1:]:
        with lab.inside(name):
            config = HostConfig(listen=lab.hosts[name], reachability="public", bootstrap=maddrs)
            host = await stack.enter_async_context(open_host(config))
            await stack.enter_async_context(open_node(host, maddrs))
        maddrs += host.maddrs
    invite = Invite.parse(first["invite"])
    return Invite(invite.swarm, invite.model, maddrs).encode()


def check(found, told):
    """What `shoal status` says elsewhere and `shoal doctor` behind a router."""
    assert {peer["reach"] for peer in found["peers"]} == {"relayed"}
    for peer in found["peers"]:
        assert any(map(is_relayed, peer["addrs"]))
        assert not any("/127.0.0.1/" in maddr for maddr in peer["addrs"])
    checks = {one["name"]: one for one in told["checks"]}
    assert checks["reach"]["text"].startswith("relayed")
    assert checks["peers"]["state"] == "ok"
    assert "(3 relayed)" in checks["peers"]["text"]


async def test_peers_behind_routers_serve_by_the_shortest_way_there_is(tmp_path):
    """Directly where a router allows it and between neighbours, else through a relay."""
    folder = save_model(tmp_path / "tiny")
    with Lab(NETWORK) as lab:
        async with AsyncExitStack() as stack:
            children = await stack.enter_async_context(Children({"OMP_NUM_THREADS": "1"}))
            invite = await bootstrap(lab, stack, children)
            argv = ["peer", "--model", str(folder), "--join", invite, "--json", "--dtype", "float32", "--blocks"]
            started = [await children.start(host, [*argv, SPANS[host]], within=lab.command(host)) for host in SPANS]
            for child in started:
                await child.event("event", "online")
            found = shoal(lab, "me", "status", "--join", invite), shoal(lab, "r", "doctor", "--join", invite)
            check(*await asyncio.gather(*found))
            async with client(lab, folder, invite) as (joined, model):
                await joined.wait_covered(30)
                first, stats = await generate(joined, model, STEPS)
                before = lab.stats()["passed"]
                again, later = await generate(joined, model, STEPS)
                passed = lab.stats()["passed"]
        assert first == again == greedy(folder, STEPS)
        in_time(stats.repairs == later.repairs == 0, stats, later)

        def packets(way):
            return passed.get(way, 0) - before.get(way, 0)

        assert packets("me>home") >= STEPS  # p has dialled back
        assert packets("home>cafe") < STEPS / 2  # p to q: nobody can guess what port the router takes for whom,
        assert sum(packets(f"{relay}>cafe") for relay in RELAYS) >= STEPS  # so a relay carries it
        assert packets("cafe>cafe") >= STEPS  # q to r, in their own network
