"""Lines between real daemons on an emulated network: how fast they are is found out and used, and they are shared."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress

import pytest
import torch
from lab_swarm import needs_network, processes
from netlab.lab import Lab
from shoal.client.local import load_model
from shoal.client.options import Model, SessionOptions
from shoal.client.swarm import SwarmOptions, join_swarm
from shoal.dht.host import HostConfig, open_host
from shoal.dht.identity import Identity
from shoal.dht.invite import Invite
from shoal.peer.channel import Channel
from shoal.peer.line import Line
from shoal.peer.link import Patience
from shoal.peer.transport import P2PTransport
from shoal.peer.wire import Hidden, Want

from tests.steadiness import in_time

pytestmark = [pytest.mark.swarm, pytest.mark.alone, pytest.mark.timeout(180), needs_network]

MIB = 1 << 20
BIG, SMALL = b"b" * 16, b"s" * 16
WIDTH, TOKENS = 1024, 1024


def states(session, step, n_bytes):
    return Hidden(
        session=session, epoch=0, step=step, position=step, count=n_bytes // 4096, want=Want.LAST, replay=False,
        rows=n_bytes // 4096, width=1024, dtype="float32", payload=bytes(n_bytes),
    )  # fmt: skip


@asynccontextmanager
async def host_on(lab, name):
    """A daemon on a host, driven by this process."""
    with lab.inside(name):
        context = open_host(HostConfig(listen=lab.hosts[name], identity=Identity.generate()))
        host = await context.__aenter__()
    try:
        yield host
    finally:
        await context.__aexit__(None, None, None)


@asynccontextmanager
async def channel_between(lab, line=None):
    """A channel from host a to host b; yields it and when what came to b came, by session: [(seconds, step)]."""
    came = {BIG: [], SMALL: []}

    async def take(stream):
        other = Channel(stream, "test", Patience(), time.perf_counter)
        await other.run(lambda _, message: came[message.session].append((time.perf_counter(), message.step)))

    async with host_on(lab, "a") as a, host_on(lab, "b") as b, asyncio.TaskGroup() as tasks:
        there = P2PTransport(b)
        serving = tasks.create_task(there.serve(take))
        await there.serving.wait()
        stream = await P2PTransport(a).connect(b.peer_id, b.maddrs)
        channel = Channel(stream, "test", Patience(), time.perf_counter, line)
        running = tasks.create_task(channel.run(lambda *_: None))
        yield channel, came
        channel.close()
        with suppress(asyncio.CancelledError):
            await running
        serving.cancel()


async def token_after(channel, came, step):
    """Seconds that a decode step's states take to the other side."""
    began, before = time.perf_counter(), len(came[SMALL])
    channel.send(states(SMALL, step, 16384))
    async with asyncio.timeout(20):
        while len(came[SMALL]) == before:
            await asyncio.sleep(0.002)
    return came[SMALL][-1][0] - began


async def test_a_token_overtakes_a_prompt_of_64_mib_and_the_lines_rate_is_found():
    with Lab("rate=100Mbit rtt=5ms a b") as lab:
        async with channel_between(lab) as (channel, came):
            channel.send(states(BIG, 0, 64 * MIB))
            assert channel.clogged
            await asyncio.sleep(1.5)
            waits = []
            for step in range(20):
                waits.append(await token_after(channel, came, step))
                await asyncio.sleep(0.03)
            assert not came[BIG]
            in_time(sorted(waits)[10] < 0.05, waits)  # 16 KiB and the way there take 4 ms; 64 MiB take 5.4 s
            in_time(max(waits) < 0.4, waits)
            flow = channel.link.flow
            in_time(flow.rate == pytest.approx(12.5e6, rel=0.3), flow.rate)
            for host in ("a", "b"):
                lab.set(host, "rate=20Mbit")
            await asyncio.sleep(7.0)
            in_time(flow.rate == pytest.approx(2.5e6, rel=0.3), flow.rate)
            assert not came[BIG]


async def test_a_limited_line_is_used_up_to_its_limit():
    line = Line(2.5e6)
    with Lab("rate=100Mbit rtt=20ms a b") as lab:
        async with channel_between(lab, line) as (channel, came):
            for step in range(100):
                channel.send(states(BIG, step, 65536))
            await asyncio.sleep(2.0)
            carried = 65536 * len(came[BIG])
            assert carried < 1.1 * 5e6
            in_time(carried > 0.75 * 5e6, carried)
            assert line.upload(time.perf_counter()) <= 2.5e6


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose states are much and whose blocks compute little."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, vocab_size=64, max_position_embeddings=4096,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model") / "wide"
    LlamaForCausalLM(config).save_pretrained(path)
    return path


async def test_what_peers_and_clients_send_at_is_found_announced_and_makes_activations_small(wide):
    """First all lines carry 20 Mbit/s, then 100, of which one peer uses 50. It takes no more either, so that the client
    sends to another one."""
    limit = ["--max-bandwidth", "50Mbit"]
    with Lab("rate=20Mbit rtt=5ms boot o p q me") as lab:
        async with processes(lab, wide, {"o": "0:1", "p": "1:3", "q": "3:4"}, {"p": limit}) as (invite, peers):
            with lab.inside("me"):
                model = load_model(str(wide), "float32")
                info = Model(4, WIDTH, model.checkpoint.revision)
                async with join_swarm(Invite.parse(invite), info, SwarmOptions(listen=lab.hosts["me"])) as joined:
                    await joined.wait_covered(30)
                    await measured(joined, model, peers["p"][0], {"me": 20, "p": 20})
                    for host in lab.hosts:
                        lab.set(host, "rate=100Mbit")
                    await measured(joined, model, peers["p"][0], {"me": 100, "p": 50})


async def measured(joined, model, peer_id, mbits):
    """After some prompts client and peer know what they can send, and the swarm has been told."""
    mine, theirs = (pytest.approx(mbits[who] * 125e3, rel=0.3) for who in ("me", "p"))
    with suppress(TimeoutError):
        async with asyncio.timeout(60):  # a busy machine does not always fill the line
            while joined.knowledge().upload_bps != mine or upload(await joined.refresh(), peer_id) != theirs:
                await prefill(joined, model)
    found = joined.knowledge().upload_bps, upload(joined.view, peer_id)
    in_time(found == (mine, theirs), found, mine, theirs)
    assert joined._form(SessionOptions(max_tokens=TOKENS, dtype="bfloat16", codec="auto")) == "int8"


async def prefill(joined, model):
    """A prompt's way through the swarm, as float32."""
    ids = torch.arange(TOKENS) % 60
    async with joined.session(SessionOptions(max_tokens=TOKENS + 8, dtype="float32", wait_s=20)) as session:
        await session.step(model.ends.embed(ids, torch.arange(TOKENS)))


def upload(view, peer_id):
    return next(peer.upload_bps for peer in view.peers if peer.peer_id == peer_id)
