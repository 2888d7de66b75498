"""A peer moves to blocks that lose their holders, with real processes: the running generation goes on, exactly."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import weakref

import pytest
import torch
from shoal.blocks.errors import CheckpointError
from shoal.client.cli.children import Children
from shoal.client.local import load_model
from shoal.client.swarm import Model, SessionOptions, join_swarm
from shoal.dht.invite import Invite
from shoal.peer import loading
from shoal.peer import mover as moving
from shoal.peer.config import PeerConfig
from shoal.peer.mover import Mover
from shoal.peer.serve import serve
from shoal.routing.rebalance import Move

pytestmark = [pytest.mark.swarm, pytest.mark.calm, pytest.mark.timeout(240)]

BLOCKS = 6
PROMPT = [5, 17, 42, 99, 7, 3, 250, 1]
STEPS = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama of six blocks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=BLOCKS, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=256, max_position_embeddings=512,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model") / "tiny"
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def expected(folder) -> list[int]:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    out = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=STEPS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return out[0, len(PROMPT) :].tolist()


async def generate(joined, model, disturb):
    tokens, new = list(PROMPT), list(PROMPT)
    async with joined.session(SessionOptions(max_tokens=len(PROMPT) + STEPS, wait_s=30)) as session:
        while len(tokens) < len(PROMPT) + STEPS:
            positions = torch.arange(session.position, session.position + len(new))
            hidden = await session.step(model.ends.embed(torch.tensor(new), positions))
            new = [int(model.ends.logits(hidden)[-1].argmax())]
            tokens += new
            await disturb(len(tokens) - len(PROMPT))
    return tokens[len(PROMPT) :]


async def test_a_peer_takes_the_place_of_the_last_holders(folder):
    """Two peers on each half; those on the second leave, both, in the middle of a generation. One of the others sees
    it, hands its sessions to its neighbour and takes over, while those that leave still serve."""
    async with Children({"OMP_NUM_THREADS": "1"}) as children:
        node = await children.start("bootstrap", ["bootstrap", "--json", "--model", "tiny"])
        invite = (await node.event("invite"))["invite"]
        argv = ["peer", "--model", str(folder), "--join", invite, "--json", "--kv-tokens", "256", "--drain", "60"]
        fixed = [await children.start(f"fixed {n}", [*argv, "--blocks", "3:6"]) for n in range(2)]
        for child in fixed:
            await child.event("event", "online")
        argv += ["--num-blocks", "3", "--rebalance-s", "2"]
        free = [await children.start(f"free {n}", argv) for n in range(2)]
        assert [(await child.event("event", "online"))["blocks"] for child in free] == [[0, 3], [0, 3]]
        model = load_model(str(folder), "float32")
        info = Model(BLOCKS, 64, model.checkpoint.revision)
        async with join_swarm(Invite.parse(invite), info) as joined:
            await joined.wait_covered(30)

            async def disturb(number):
                if number == 8:
                    for child in fixed:
                        child.signal(signal.SIGTERM)
                    assert await first_to_move(free) == [3, 6]

            assert await generate(joined, model, disturb) == expected(folder)
            assert [await child.status() for child in fixed] == [0, 0]


async def test_the_blocks_that_a_peer_leaves_are_out_of_memory_before_the_next_ones_come(folder, monkeypatch, capsys):
    """A peer that fills its device could not load them otherwise. It moves as soon as it serves, unless those blocks
    cannot be had."""
    spans, still_there = [], []
    load, fetch, runs, fetches = loading.load, loading.fetch, itertools.count(), itertools.count()

    def failing(*arguments):
        if next(fetches) == 1:  # the first is for the blocks that it begins with
            raise CheckpointError("the hub does not answer")
        return fetch(*arguments)

    def watched(*arguments):
        still_there.append([span() is not None for span in spans])
        span = load(*arguments)
        spans.append(weakref.ref(span))
        return span

    def find(_mover, _view, _seed, _rtts_s):  # asked twice each time that it goes
        return Move(3, 6, "told to", 1.0, 2.0) if next(runs) < 4 else None

    monkeypatch.setattr(loading, "load", watched)
    monkeypatch.setattr(loading, "fetch", failing)
    monkeypatch.setattr(Mover, "_find", find)
    monkeypatch.setattr(moving, "yields_to", lambda *_: False)  # it is alone, and goes all the same
    async with Children({"OMP_NUM_THREADS": "1"}) as children:
        node = await children.start("bootstrap", ["bootstrap", "--json", "--model", "tiny"])
        invite = Invite.parse((await node.event("invite"))["invite"])
        config = PeerConfig(
            invite, str(folder), num_blocks=3, kv_tokens=64, json=True, drain_s=1.0, rebalance_s=0.2
        )  # fmt: skip
        said = ""
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            peer = tasks.create_task(serve(config))
            while said.count('"online"') < 2:
                assert not peer.done(), peer.result()
                await asyncio.sleep(0.1)
                said += capsys.readouterr().out
            os.kill(os.getpid(), signal.SIGTERM)
            assert await peer == 0
    assert said.count('"moving"') == 1
    assert next(runs) >= 4  # the first time the blocks could not be had
    assert still_there == [[], [False]]


async def test_a_dry_run_says_what_would_be_served_and_loads_nothing(folder):
    """Two peers serve the first half, one the second: there it would help, and the slowest blocks get twice as fast."""
    async with Children({"OMP_NUM_THREADS": "1"}) as children:
        node = await children.start("bootstrap", ["bootstrap", "--json", "--model", "tiny"])
        argv = ["peer", "--model", str(folder), "--join", (await node.event("invite"))["invite"], "--kv-tokens", "64"]
        look = [*argv, "--num-blocks", "3", "--dry-run"]
        empty = await children.start("empty", [*look, "--json"])
        found = await empty.event("event", "preview")
        assert found["bottleneck_before"] == 0
        assert found["token_before_s"] is found["token_after_s"] is None
        assert "have no holder" in found["why"]
        assert await empty.status() == 0
        spans = ["0:3", "0:3", "3:6"]
        peers = [await children.start(f"peer {n}", [*argv, "--blocks", s, "--json"]) for n, s in enumerate(spans)]
        for child in peers:
            await child.event("event", "online")
        child = await children.start("look", [*look, "--json"])
        found = await child.event("event", "preview")
        assert found["blocks"] == [3, 6]
        assert found["bottleneck_after"] > 1.3 * found["bottleneck_before"] > 0
        assert found["token_after_s"] <= found["token_before_s"]
        assert found["weights_bytes"] > 0
        assert found["kv_bytes"] > 0
        assert "as with the other peers" in found["assumed"]
        assert "the ways to 3 of 3 peers" in found["assumed"]
        assert await child.status() == 0


async def first_to_move(free):
    """The blocks that the first of these peers serves anew."""
    again = [asyncio.create_task(child.event("event", "online")) for child in free]
    done, waiting = await asyncio.wait(again, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    return done.pop().result()["blocks"]
