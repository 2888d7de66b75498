"""A peer that cannot load the blocks which it has announced: it takes that back, and ends with one line."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from processes import Processes
from safetensors.torch import load_file, save_file
from shoal.client.cli.complaint import complaint
from shoal.dht.invite import Invite
from shoal.peer import loading
from shoal.peer import mover as moving
from shoal.peer.config import PeerConfig
from shoal.peer.mover import Mover
from shoal.peer.serve import serve
from shoal.routing.rebalance import Move

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(120)]

BLOCKS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of four blocks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=BLOCKS, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=256, max_position_embeddings=512,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes() as running:
        yield running


@pytest.fixture(scope="module")
def invite(processes: Processes, folder: Path) -> str:
    token: str = processes.start("bootstrap", "--json", "--model", str(folder)).event("invite")["invite"]
    return token


def announced(processes: Processes, invite: str) -> list[str]:
    """In which state the peers are that others find."""
    found = processes.run("status", "--join", invite, "--json")
    return [peer["state"] for peer in json.loads(found.stdout)["peers"]]


def test_a_peer_with_a_broken_checkpoint(processes: Processes, invite: str, folder: Path) -> None:
    """Config and files look sound; that the tensors do not fit is found when they are loaded."""
    whole = {path: path.read_bytes() for path in folder.glob("*.safetensors")}
    try:
        for path in whole:
            tensors = load_file(path)
            save_file({name: part[:8] if "q_proj" in name else part for name, part in tensors.items()}, path)
        done = processes.run("peer", "--join", invite, "--num-blocks", "2", "--kv-tokens", "64")
        states = announced(processes, invite)  # of this revision, as the files stand now
    finally:
        for path, raw in whole.items():
            path.write_bytes(raw)
    assert "taking blocks" in done.stderr  # which is when it announces them
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("shoal")]
    assert said == done.stderr.splitlines()[-1]
    assert "other shapes" in said
    assert states == []


async def test_a_peer_without_memory_for_the_blocks_that_it_moves_to(
    processes: Processes, invite: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load, loads = loading.load, itertools.count()

    def failing(*arguments: Any) -> Any:
        if next(loads):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(*arguments)

    monkeypatch.setattr(loading, "load", failing)
    monkeypatch.setattr(Mover, "_find", lambda *_: Move(2, 4, "told to", 1.0, 2.0))
    monkeypatch.setattr(moving, "yields_to", lambda *_: False)  # it is alone, and goes all the same
    parsed = Invite.parse(invite)
    config = PeerConfig(parsed, parsed.model, num_blocks=2, kv_tokens=64, json=True, drain_s=1.0, rebalance_s=0.2)
    with pytest.raises(torch.OutOfMemoryError) as error:
        await serve(config)
    assert "too little memory" in (complaint(error.value) or "")
    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == ["online", "moving"]
    assert await asyncio.to_thread(announced, processes, invite) == []
