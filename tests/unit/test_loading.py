"""From what a volunteer said to a loaded span: what is promised before loading is what it takes, on this machine."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from shoal.blocks.devices import Memory
from shoal.blocks.errors import NoMemory
from shoal.blocks.held import held_bytes
from shoal.dht.invite import Invite
from shoal.peer import loading
from shoal.peer.config import PeerConfig, PeerError
from shoal.peer.loading import figures_of, fit_model, load, open_model
from torch import nn

MIB = 2**20
CONFIG = PeerConfig(Invite("s", "demo", ()), "demo")


class Pool(nn.Module):
    def __init__(self, span):
        super().__init__()
        self.blocks = [span.kv.block(index) for index in span.blocks]


@pytest.mark.parametrize("wishes", [{"quantization": "nf4"}, {"kv_dtype": "int8"}, {"kv_tokens": 4096}, {}], ids=str)
def test_a_span_within_a_bound_takes_no_more_than_the_bound(wishes, caplog):
    config = replace(CONFIG, vram=400 * MIB, **wishes)
    model = open_model(config)
    with caplog.at_level(logging.INFO):
        room = fit_model(config, model)
    assert 0 < room.blocks <= 12
    assert f"{room.blocks} of 12 blocks fit" in caplog.text
    span = load(config, model, range(room.blocks), room)
    assert span.kv.n_slots == room.kv_tokens
    assert (span.kv.kind, span.blocks) == (wishes.get("kv_dtype", "auto"), range(room.blocks))
    taken = held_bytes([*span._parts.layers.values(), Pool(span)])
    assert taken + loading.CPU_BYTES <= 400 * MIB
    assert wishes.get("kv_tokens", room.kv_tokens) == room.kv_tokens


def test_less_memory_is_fewer_blocks_or_none():
    def blocks(mib, **wishes):
        config = replace(CONFIG, vram=mib * MIB, **wishes)
        return fit_model(config, open_model(config)).blocks

    counts = [blocks(mib) for mib in (280, 290, 300, 320, 400)]
    assert counts == sorted(counts)
    assert 1 <= counts[0] < 6
    assert counts[-1] == 12
    assert blocks(290, quantization="nf4") > blocks(290)
    with pytest.raises(NoMemory, match="too little memory for one block"):
        blocks(262)


def test_without_wishes_there_is_room_for_the_demo_model_and_its_users():
    room = fit_model(CONFIG, open_model(CONFIG))
    assert (room.blocks, room.streamed, room.swap_pages) == (12, 0, 0)
    assert room.kv_tokens == loading.CPU_SESSIONS * loading.CPU_CONTEXT
    assert fit_model(replace(CONFIG, kv_tokens=100), open_model(CONFIG)).kv_tokens == 112  # whole pages


def test_a_gpu_s_context_is_there_before_its_free_memory_is_asked_for(monkeypatch):
    monkeypatch.setattr(loading, "device_memory", lambda _device: Memory(20 * 2**30, 24 * 2**30))
    spec = open_model(CONFIG).spec
    assert figures_of(replace(CONFIG, device="cuda"), spec).context == loading.CUDA_CONTEXT_BYTES
    assert figures_of(CONFIG, spec).context == 0


def test_blocks_that_the_model_has_not():
    with pytest.raises(PeerError, match="0:12"):
        open_model(replace(CONFIG, blocks=range(8, 40)))
