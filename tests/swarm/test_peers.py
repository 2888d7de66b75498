"""Real peers on the loopback interface: killed, stopped and drained under a running generation; a closed swarm."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import torch
from shoal.client.cli.children import Children
from shoal.client.generation import GenerationOptions, prompt_of
from shoal.client.generation import generate as complete
from shoal.client.local import load_model
from shoal.client.options import Model, SessionOptions
from shoal.client.swarm import join_swarm
from shoal.dht.invite import Invite
from shoal.peer.errors import HopRefused, NoRouteError, Reason

from tests.steadiness import in_time

pytestmark = [pytest.mark.swarm, pytest.mark.calm, pytest.mark.timeout(240)]

BLOCKS = 6
PROMPT = [5, 17, 42, 99, 7, 3, 250, 1]
STEPS = 40


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


@pytest.fixture(scope="module")
def expected(folder):
    """The greedy tokens of the whole model in one process."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([PROMPT])
    out = model.generate(ids, max_new_tokens=STEPS, do_sample=False, eos_token_id=None, pad_token_id=0)
    return out[0, len(PROMPT) :].tolist()


@asynccontextmanager
async def swarm(folder, spans, private=False, options=()):
    """A bootstrap node and peers, and this process as a client; yields (client swarm, model, peers by id, node).
    `options`: of all peers."""
    async with Children({"OMP_NUM_THREADS": "1"}) as children:
        flags = ["--private"] if private else []
        node = await children.start("bootstrap", ["bootstrap", "--json", "--model", "tiny", *flags])
        invite = (await node.event("invite"))["invite"]
        peers = {}
        started = [
            await children.start(
                span,
                [
                    "peer",
                    "--model",
                    str(folder),
                    "--join",
                    invite,
                    "--blocks",
                    span,
                    "--json",
                    "--dtype",
                    "float32",
                    *options,
                ],
            )
            for span in spans
        ]
        for child in started:
            peers[(await child.event("event", "online"))["peer"]] = child
        model = load_model(str(folder), "float32")
        info = Model(BLOCKS, 64, model.checkpoint.revision)
        async with join_swarm(Invite.parse(invite), info) as joined:
            await joined.wait_covered(30)
            yield joined, model, peers, node


async def generate(joined, model, disturb):
    """Greedy tokens; `disturb(number, session)` is awaited after each."""
    tokens = list(PROMPT)
    async with joined.session(SessionOptions(max_tokens=len(PROMPT) + STEPS, wait_s=30)) as session:
        new = list(PROMPT)
        while len(tokens) < len(PROMPT) + STEPS:
            positions = torch.arange(session.position, session.position + len(new))
            hidden = await session.step(model.ends.embed(torch.tensor(new), positions))
            new = [int(model.ends.logits(hidden)[-1].argmax())]
            tokens += new
            await disturb(len(tokens) - len(PROMPT), session)
        return tokens[len(PROMPT) :], session.stats


async def until_withdrawn(joined):
    """Until the directory shows nobody who takes new sessions."""
    async with asyncio.timeout(20):
        while any(peer.state == "online" for peer in (await joined.refresh()).peers):
            await asyncio.sleep(0.1)


async def test_killed_stopped_and_terminated_peers_change_no_token(folder, expected):
    async with swarm(folder, ["0:6", "0:3", "3:6", "2:6"]) as (joined, model, peers, _node):
        killed = []

        async def disturb(number, session):
            if number == 8:
                victim = session.route[0].peer_id
                peers[victim].signal(signal.SIGKILL)
                killed.append(victim)
            if number == 20:
                victim = session.route[-1].peer_id
                peers[victim].signal(signal.SIGSTOP)
                killed.append(victim)

        tokens, stats = await generate(joined, model, disturb)
        assert tokens == expected
        assert stats.repairs + stats.moves >= 2
        peers[killed[1]].signal(signal.SIGCONT)


async def test_sigterm_finishes_running_sessions_and_leaves(folder, expected):
    async with swarm(folder, ["0:6"]) as (joined, model, peers, _node):
        (child,) = peers.values()

        async def disturb(number, session):
            if number == 8:
                child.signal(signal.SIGTERM)
            if number == 12:
                await until_withdrawn(joined)
                with pytest.raises(NoRouteError):
                    async with joined.session(SessionOptions(max_tokens=8)) as other:
                        await other.step(torch.zeros(1, 64))

        tokens, stats = await generate(joined, model, disturb)
        assert tokens == expected
        in_time(stats.repairs == 0, stats)
        assert await child.status() == 0


async def test_a_private_swarm_is_invisible_and_closed_without_its_secret(folder, expected):
    async with swarm(folder, ["0:6"], private=True) as (joined, model, _peers, _node):
        assert len(joined.view.peers) == 1
        invite = joined._place.invite
        assert invite.secret
        stranger = Invite(invite.swarm, invite.model, invite.peers)
        thief = replace(invite, secret=b"g" * 32)
        vars(thief)["namespace"] = invite.namespace  # nodes that store records see it in them
        for who, reason in ((stranger, Reason.WRONG_MODEL), (thief, Reason.FORBIDDEN)):
            async with join_swarm(who, joined.model) as outside:
                assert not (await outside.refresh()).peers
                outside._place = replace(outside._place, directory=joined._place.directory)
                assert (await outside.refresh()).peers  # even one who has learned who serves is turned away
                async with outside.session(SessionOptions(max_tokens=8)) as session:
                    with pytest.raises(NoRouteError):
                        await session.step(torch.zeros(1, 64))
                    refusal = session._core.last_error
            assert isinstance(refusal, HopRefused)
            assert refusal.reason is reason

        async def nothing(_number, _session):
            return

        assert (await generate(joined, model, nothing))[0] == expected


async def test_a_prompt_that_comes_again_is_run_from_its_last_group(folder):
    from transformers import LlamaForCausalLM

    prompt = [1 + (37 * i + i // 7) % 255 for i in range(150)]  # none is the padding token 0
    whole = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    out = whole.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0)
    results = []
    async with swarm(folder, ["0:3", "3:6"]) as (joined, model, _peers, _node):
        options = SessionOptions(max_tokens=160, prompt=prompt_of(model.ends.spec, prompt), wait_s=30)
        for _ in range(2):
            async with joined.session(options) as session:
                pieces = complete(session, model.ends, None, prompt, GenerationOptions(10))
                tokens = [piece.token_id async for piece in pieces]
                results.append((tokens, session.stats.cached_tokens))
    expected = out[0, len(prompt) :].tolist()
    assert results == [(expected, 0), (expected, 128)]


async def test_peers_that_start_together_take_different_blocks(folder):
    async with Children({"OMP_NUM_THREADS": "1"}) as children:
        node = await children.start("bootstrap", ["bootstrap", "--json", "--model", "tiny"])
        join = ["--join", (await node.event("invite"))["invite"]]
        argv = ["peer", "--model", str(folder), *join, "--num-blocks", "3", "--json"]
        peers = [await children.start(f"peer {number}", argv) for number in range(2)]
        spans = [(await peer.event("event", "online"))["blocks"] for peer in peers]
    assert sorted(spans) == [[0, 3], [3, 6]]
