"""Swarms on an emulated network: a bootstrap node and peers, each on its own host, and this process as a client."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from shoal.client.cli.children import Children
from shoal.client.local import load_model
from shoal.client.options import Model, SessionOptions
from shoal.client.swarm import SwarmOptions, join_swarm
from shoal.dht.invite import Invite

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from netlab.namespace import why_not

BLOCKS = 4
PROMPT = [5, 17, 42, 99, 7, 3, 250, 1]
needs_network = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def save_model(path):
    """A random Llama of four blocks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=BLOCKS, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=256, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def greedy(folder, steps):
    """The tokens of the whole model in one process."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([PROMPT])
    out = model.generate(ids, max_new_tokens=steps, do_sample=False, eos_token_id=None, pad_token_id=0)
    return out[0, len(PROMPT) :].tolist()


@asynccontextmanager
async def processes(lab, folder, spans, flags=None):
    """A bootstrap node on host `boot` and a peer on each host of `spans` (name -> `A:B`); yields the invite and the
    peers' (id, child) by host. `flags`: further arguments by host."""
    async with Children({"OMP_NUM_THREADS": "1"}) as children:
        argv = ["bootstrap", "--json", "--model", "tiny", "--host", lab.hosts["boot"], "--port", "4001"]
        node = await children.start("bootstrap", argv, within=lab.command("boot"))
        invite = (await node.event("invite"))["invite"]
        started = {}
        for host, span in spans.items():
            argv = ["peer", "--model", str(folder), "--join", invite, "--blocks", span, "--json", "--dtype", "float32"]
            argv += ["--host", lab.hosts[host], *(flags or {}).get(host, [])]
            started[host] = await children.start(host, argv, within=lab.command(host))
        peers = {host: ((await child.event("event", "online"))["peer"], child) for host, child in started.items()}
        yield invite, peers


@asynccontextmanager
async def client(lab, folder, invite, host="me"):
    """This process as a client on a host; yields (client swarm, model)."""
    with lab.inside(host):
        model = load_model(str(folder), "float32")
        info = Model(BLOCKS, 64, model.checkpoint.revision)
        options = SwarmOptions(listen=lab.hosts[host])
        async with join_swarm(Invite.parse(invite), info, options) as joined:
            yield joined, model


async def generate(joined, model, steps, disturb=None, wait_s=30.0):
    """Greedy tokens and the session's statistics; `disturb(number)` is awaited after each token."""
    tokens, new = [], list(PROMPT)
    options = SessionOptions(max_tokens=len(PROMPT) + steps, wait_s=wait_s)
    async with joined.session(options) as session:
        while len(tokens) < steps:
            positions = torch.arange(session.position, session.position + len(new))
            hidden = await session.step(model.ends.embed(torch.tensor(new), positions))
            new = [int(model.ends.logits(hidden)[-1].argmax())]
            tokens += new
            if disturb is not None:
                await disturb(len(tokens))
        return tokens, session.stats
