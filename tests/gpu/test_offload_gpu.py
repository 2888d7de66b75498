"""Blocks streamed from host memory on a real device: the same numbers as resident ones, and a peer that serves so."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from processes import Processes
from shoal.blocks.checkpoint import resolve
from shoal.blocks.errors import NoMemory
from shoal.blocks.kv import PAGE_TOKENS
from shoal.blocks.span import Row, SpanOptions, load_span
from shoal.dht.invite import Invite
from shoal.peer.config import PeerConfig
from shoal.peer.engine import DeviceEngine
from shoal.peer.loading import fit_model, open_model
from shoal.peer.measure import measured
from transformers import LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from shoal.blocks.offload import Streamed
    from shoal.blocks.span import Span

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240)]

MIB = 2**20
KV_TOKENS = 1024


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes() as running:
        yield running


@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
@pytest.mark.parametrize("streamed", [1, 7, 12])
def test_streamed_blocks_give_the_same_numbers(kind: str, streamed: int) -> None:
    checkpoint = resolve("demo")
    options = SpanOptions(kv_pages=8, quantization=kind, device="cuda", dtype=torch.bfloat16, fused=False)
    resident = load_span(checkpoint, range(12), options)
    span = load_span(checkpoint, range(12), dataclasses.replace(options, host_blocks=streamed))
    forwards(resident)  # the first of a process may round otherwise: torch's attention has not chosen its kernels yet
    for expected, found in zip(forwards(resident), forwards(span), strict=True):
        assert torch.equal(found, expected)


def forwards(span: Span) -> list[torch.Tensor]:
    """A prompt and some tokens, through all blocks and some of them."""
    torch.manual_seed(1)
    outputs, position = [], 0
    for start, stop, count in [(0, 12, 40), (0, 12, 1), (2, 9, 1), (0, 12, 3), (0, 12, 1)]:
        hidden = torch.randn(count, span.spec.hidden_size).to(torch.bfloat16)
        outputs.append(span.forward(hidden, [Row(tuple(range(8)), position, count)], start, stop).clone())
        position += count
    return outputs


class Zeros:
    """A Llama whose blocks take 100 MiB each: the bus is busy with them for milliseconds, whatever Python does."""

    def __init__(self, blocks: int) -> None:
        config = LlamaConfig(
            hidden_size=2048, intermediate_size=6144, num_hidden_layers=blocks, num_attention_heads=16,
            num_key_value_heads=16, vocab_size=64,
        )  # fmt: skip
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        self.config = config.to_dict()
        self.shapes = {name: tensor.shape for name, tensor in model.named_parameters()}

    def tensor_names(self) -> frozenset[str]:
        return frozenset(self.shapes)

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        return {name: torch.zeros(self.shapes[name], dtype=torch.bfloat16) for name in names}


async def test_the_announced_speed_is_no_better_than_the_bus(tmp_path) -> None:
    """Every step brings all streamed blocks: their bytes, at the rate at which this machine copies them."""
    options = SpanOptions(kv_pages=KV_TOKENS // PAGE_TOKENS, device="cuda", dtype=torch.bfloat16, host_blocks=6)
    span = load_span(Zeros(8), range(8), options)
    engine = DeviceEngine(span, PAGE_TOKENS)
    try:
        found, _ = await measured(engine, "bfloat16", {}, tmp_path)
    finally:
        engine.close()
    assert span._parts.layers.host_bytes > 6 * 100 * MIB
    assert 8 * found.decode_s >= 0.98 * copying_s(span._parts.layers)  # two measurements, and this one is the best of 5


def copying_s(layers: Streamed) -> float:
    """Seconds of one copy of all streamed blocks to the device."""
    masters = [block.master for block in layers._blocks.values()]
    place = torch.empty(max(map(len, masters)), dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(5):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        began.record()
        for master in masters:
            place[: len(master)].copy_(master, non_blocking=True)
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) / 1e3)
    return min(times)


@pytest.mark.alone
def test_a_peer_with_too_little_memory_streams_the_rest_and_says_so(processes: Processes) -> None:
    invite = processes.start("bootstrap", "--json").event("invite")["invite"]
    vram, streamed = half_of_the_model(invite)
    memory = ["--vram", f"{vram // MIB}MiB", "--kv-tokens", str(KV_TOKENS)]
    peer = processes.start("peer", "--join", invite, "--device", "cuda", "--offload", "--json", *memory)
    assert peer.event("event", "online")["blocks"] == [0, 12]
    assert any(f"{streamed} of them are streamed" in line for line in peer.errors), peer.errors
    done = processes.run("generate", "def main():", "--join", invite, "--max-new-tokens", "16", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["token_ids"]) == 16
    said = processes.run("peer", "--join", invite, "--device", "cuda", *memory, "--blocks", "0:12")
    assert said.returncode == 1, "without --offload the same memory is too little"
    assert "too little memory" in said.stderr


def half_of_the_model(invite: str) -> tuple[int, int]:
    """Device memory in bytes that holds some of the demo model's blocks, and how many are then streamed."""
    for vram in range(1024 * MIB, 2048 * MIB, MIB):
        config = PeerConfig(
            Invite.parse(invite), "demo", device="cuda", vram=vram, kv_tokens=KV_TOKENS, offload=True
        )  # fmt: skip
        try:
            found = fit_model(config, open_model(config))
        except NoMemory:
            continue
        if found.blocks == 12 and 0 < found.streamed < 12:
            return vram, found.streamed
    raise AssertionError("no size of memory makes this machine stream blocks")
