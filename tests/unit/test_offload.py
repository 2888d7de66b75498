"""Streamed blocks compute what resident ones do, from two buffers, in any order of sub-ranges."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch
from shoal.blocks.checkpoint import resolve
from shoal.blocks.errors import NoMemory
from shoal.blocks.held import held_bytes
from shoal.blocks.kv import PAGE_TOKENS
from shoal.blocks.offload import BUFFERS, Streamed, _Buffer, spread
from shoal.blocks.span import Row, SpanOptions, load_span
from shoal.peer.engine import DeviceEngine
from shoal.peer.measure import measured
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

BLOCKS = 5
CONFIG = LlamaConfig(
    hidden_size=256, intermediate_size=512, num_hidden_layers=BLOCKS, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(CONFIG).save_pretrained(folder)
    return resolve(str(folder))


@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
@pytest.mark.parametrize("streamed", [1, 2, 3, BLOCKS])
def test_a_span_with_streamed_blocks_gives_the_same_numbers(checkpoint, kind, streamed):
    """In float16: on a CPU the other types are packed by oneDNN, whose layout has no bytes to copy."""
    options = SpanOptions(kv_pages=8, quantization=kind, dtype=torch.float16, fused=False)
    resident = load_span(checkpoint, range(BLOCKS), options)
    span = load_span(checkpoint, range(BLOCKS), dataclasses.replace(options, host_blocks=streamed))
    layers = span._parts.layers
    assert isinstance(layers, Streamed)
    assert layers.host_bytes >= 0.8 * streamed * held_bytes([resident._parts.layers[0]])
    torch.manual_seed(1)
    position = 0
    for start, stop, count in [(0, 5, 7), (0, 5, 1), (2, 4, 3), (3, 5, 1), (0, 1, 2), (0, 5, 1), (0, 5, 1)]:
        hidden = torch.randn(count, 256, dtype=torch.float16)
        rows = [Row(range(4), position, count)]
        assert torch.equal(span.forward(hidden, rows, start, stop), resident.forward(hidden, rows, start, stop))
        position += count


@pytest.mark.parametrize("streamed", [BUFFERS + 1, BLOCKS])
async def test_what_a_peer_measures_and_announces_counts_the_way_of_streamed_blocks(
    checkpoint, streamed, monkeypatch, tmp_path
):
    """By a bus that takes far longer than computing; tests/gpu/test_offload_gpu.py does it by a GPU's own."""
    bytes_per_s, bring = 300e6, _Buffer.bring

    def bring_slowly(buffer, index, master, copies):
        if buffer._holds != index:
            time.sleep(master.nbytes / bytes_per_s)
        bring(buffer, index, master, copies)

    monkeypatch.setattr(_Buffer, "bring", bring_slowly)
    options = SpanOptions(kv_pages=4, dtype=torch.float16, host_blocks=streamed)
    engine = DeviceEngine(load_span(checkpoint, range(BLOCKS), options), PAGE_TOKENS)
    streamed_bytes = engine.span._parts.layers.host_bytes
    try:
        found, _ = await measured(engine, "float16", {}, tmp_path)
    finally:
        engine.close()
    assert found.decode_s * BLOCKS >= streamed_bytes / bytes_per_s
    assert found.prefill_s * BLOCKS * 4 * PAGE_TOKENS >= streamed_bytes / bytes_per_s


@pytest.mark.parametrize(("blocks", "count"), [(range(3, 83), 10), (range(7), 3), (range(2, 6), 4), (range(5), 0)])
def test_every_part_of_a_span_has_its_share_of_streamed_blocks(blocks, count):
    """So what a token takes per block, which a peer announces, holds for those who take a part of it."""
    found = spread(blocks, count)
    assert len(set(found)) == count
    assert set(found) <= set(blocks)
    for start in range(len(blocks)):
        for stop in range(start + 1, len(blocks) + 1):
            part = blocks[start:stop]
            assert abs(sum(block in part for block in found) - count * len(part) / len(blocks)) <= 1


def linears(count, width=128):
    torch.manual_seed(2)
    return [nn.Linear(width, width + index % 2) for index in range(count)]


def test_the_device_holds_two_blocks_and_the_host_the_rest():
    modules = linears(6)
    full = held_bytes(modules)
    layers = Streamed(torch.device("cpu"), range(1, 6))
    for index, module in enumerate(modules):
        layers[index] = module
    assert held_bytes(modules[1:]) < 0.1 * full
    layers.layer(1)
    one = held_bytes(modules[:1])
    assert one * (1 + BUFFERS) <= held_bytes(modules) < one * (1.1 + BUFFERS)
    assert one * 4.9 < layers.host_bytes < one * 5.2


def test_the_next_block_is_brought_ahead_and_none_twice():
    modules = linears(4)
    expected = [module.weight.detach().clone() for module in modules]
    layers = Streamed(torch.device("cpu"), range(4))
    for index, module in enumerate(modules):
        layers[index] = module
    assert layers.layer(0) is modules[0]
    assert torch.equal(modules[0].weight, expected[0])
    assert torch.equal(modules[1].weight, expected[1]), "one ahead"
    layers._blocks[1].master.zero_()  # it has been brought, and is not read again
    assert torch.equal(layers.layer(1).weight, expected[1])
    assert torch.equal(modules[2].weight, expected[2])
    assert torch.equal(layers.layer(3).weight, expected[3]), "out of turn"
    assert torch.equal(modules[0].weight, expected[0]), "after the last comes the first"


@pytest.mark.parametrize("streamed", [1, 2, 3, 4])
def test_a_resident_block_gives_time_to_bring_two(streamed):
    modules = linears(5)
    expected = [module.weight.detach().clone() for module in modules]
    layers = Streamed(torch.device("cpu"), range(5 - streamed, 5))
    for index, module in enumerate(modules):
        layers[index] = module
    for _ in range(3):
        for index in range(5):
            assert torch.equal(layers.layer(index).weight, expected[index])
    layers.layer(0)
    ahead = range(5 - streamed, 5)[:BUFFERS]
    assert all(torch.equal(modules[index].weight, expected[index]) for index in ahead)


def test_small_tensors_stay_and_may_be_shared():
    table = torch.arange(16.0)
    modules = linears(3)
    for module in modules:
        module.table = table
    layers = Streamed(torch.device("cpu"), range(3))
    for index, module in enumerate(modules):
        layers[index] = module
    assert all(torch.equal(layers.layer(index).table, torch.arange(16.0)) for index in range(3))


def test_what_cannot_be_streamed_is_refused():
    layers = Streamed(torch.device("cpu"), range(2))
    packed = nn.Module()
    packed.weight = torch.randn(256, 256).to_mkldnn()
    with pytest.raises(ValueError, match="oneDNN"):
        layers[0] = packed
    layers[0], layers[1] = linears(2)
    layers.layer(0)
    with pytest.raises(ValueError, match="in use"):
        layers[1] = linears(1)[0]


def test_host_memory_that_cannot_be_locked_is_told(monkeypatch):
    from shoal.blocks import offload

    class Runtime:
        @staticmethod
        def cudaHostRegister(_pointer, _size, _flags):  # noqa: N802
            return 2

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    with pytest.raises(NoMemory, match="GiB"):
        offload._lock(torch.empty(2**20, dtype=torch.uint8))
