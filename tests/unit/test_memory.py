"""Bytes foretold are bytes held, for every family and quantization; free memory respects the limits of its group."""

from __future__ import annotations

import psutil
import pytest
import torch
from shoal.blocks import devices
from shoal.blocks.checkpoint import resolve
from shoal.blocks.choices import KV_DTYPES, QUANTIZATIONS
from shoal.blocks.devices import check_device, device_memory, host_memory
from shoal.blocks.errors import QuantizationError, UnsupportedDevice
from shoal.blocks.held import held_bytes, held_tensors
from shoal.blocks.kv import PAGE_TOKENS, kv_bytes_per_token
from shoal.blocks.memory import BlockShape, block_bytes, block_shapes, workspace_bytes
from shoal.blocks.quantize import maker
from shoal.blocks.span import SpanOptions, load_span
from shoal.blocks.spec import spec_of
from tiny_models import TINY, save_tiny
from torch import nn

TABLES_BYTES = 4096  # a block's code tables: as large as a tiny model's weights, and fewer where matrices are fused


def foretold(checkpoint, kind, dtype):
    return [block_bytes(shape, kind, dtype) for shape in block_shapes(spec_of(checkpoint))]


@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_demo_models_blocks_take_what_was_foretold(kind, dtype):
    checkpoint = resolve("demo")
    span = load_span(checkpoint, range(12), SpanOptions(kv_pages=1, quantization=kind, dtype=dtype))
    held = held_bytes(span._parts.layers.values())
    assert sum(foretold(checkpoint, kind, dtype)) == pytest.approx(held, rel=0.03)


@pytest.mark.parametrize("variant", TINY)
def test_every_familys_blocks_take_what_was_foretold(variant, tmp_path):
    save_tiny(variant, tmp_path)
    checkpoint = resolve(str(tmp_path))
    for kind in QUANTIZATIONS:
        span = load_span(checkpoint, range(4), SpanOptions(kv_pages=1, quantization=kind, dtype=torch.bfloat16))
        for index, expected in enumerate(foretold(checkpoint, kind, torch.bfloat16)):
            held = held_bytes([span._parts.layers[index]])
            assert expected == pytest.approx(held, rel=0.03, abs=TABLES_BYTES if kind in ("nf4", "fp4") else 0), kind


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(48, 72), (33, 64), (7, 5), (1, 1)], ids=str)
def test_matrices_of_odd_shapes_take_what_was_foretold(kind, shape):
    foretold, tables = (block_bytes(BlockShape((size,), 0, 0, 0), kind, torch.bfloat16) for size in (shape, (64, 0)))
    linear = maker(kind, torch.device("cpu"), torch.bfloat16)(torch.randn(shape), None)
    scales = linear.quant_state.absmax.nbytes + (linear.quant_state.state2.absmax.nbytes if kind == "nf4" else 0)
    assert foretold - tables == linear.weight.nbytes + scales  # the tables are as large for no weights at all


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_a_large_block_is_foretold_without_its_weights(kind):
    """Llama-3-70B's shape: what a matrix takes by bitsandbytes' formats, norms aside."""
    config = {
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 2,
        "num_attention_heads": 64, "num_key_value_heads": 8, "torch_dtype": "bfloat16",
    }  # fmt: skip
    spec = spec_of(type("C", (), {"config": config})())
    matrices = 8192 * (8192 + 1024 + 1024 + 8192) + 3 * 8192 * 28672
    bits = {"none": 16, "int8": 8, "nf4": 4.127, "fp4": 4.5}[kind]
    shapes = block_shapes(spec)
    assert len(shapes) == 2
    assert sum(rows * columns for rows, columns in shapes[0].matrices) == matrices
    assert block_bytes(shapes[0], kind, torch.bfloat16) == pytest.approx(matrices * bits / 8, rel=1e-3)
    unfolded = 2 * 8192 * 28672 if kind != "none" else 0
    activations = workspace_bytes(shapes[0], kind, torch.bfloat16, 512) - unfolded
    assert 512 * 2 * 3 * 28672 < activations < 512 * 2 * 10 * 28672
    with pytest.raises(QuantizationError):
        block_bytes(shapes[0], "int3", torch.bfloat16)


@pytest.mark.parametrize("kind", KV_DTYPES)
def test_kv_takes_what_was_foretold(kind):
    checkpoint = resolve("demo")
    span = load_span(checkpoint, range(3), SpanOptions(kv_pages=7, kv_dtype=kind))
    pool = held_bytes([Holder([span.kv.block(index) for index in range(3)])])
    per_token = kv_bytes_per_token(span.spec, span.blocks, span.dtype, kind)
    assert pool == per_token * (span.kv.n_pages + 1) * PAGE_TOKENS


class Holder(nn.Module):
    """A module with things that are no parameters."""

    def __init__(self, *things):
        super().__init__()
        self.things = things


def test_tensors_are_found_wherever_they_hang_and_shared_memory_counts_once():
    whole = torch.zeros(100)
    linear = nn.Linear(3, 4)
    linear.register_buffer("angles", torch.zeros(5))
    holder = Holder({"a": [whole, whole[:50]]}, linear)
    assert {id(tensor) for tensor in held_tensors(holder)} >= {id(whole), id(linear.weight), id(linear.angles)}
    assert held_bytes([holder]) == 4 * (100 + 3 * 4 + 4 + 5)
    assert held_bytes([holder, Holder(whole)]) == held_bytes([holder])


# -- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tpu", "use auto, cpu, cuda"),
        ("xla", "use auto, cpu, cuda"),
        ("", "use auto, cpu, cuda"),
        ("cuda:99", "CUDA devices"),
        ("cpu:x", "use auto, cpu"),
    ],
)
def test_a_device_that_is_not_served_is_named(name, words):
    with pytest.raises(UnsupportedDevice) as refused:
        check_device(name)
    assert words in str(refused.value)
    assert name in str(refused.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda_is_named():
    with pytest.raises(UnsupportedDevice, match="0 CUDA devices"):
        check_device("cuda")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is a Metal device")
def test_mps_without_metal_is_named():
    with pytest.raises(UnsupportedDevice, match="Metal"):
        check_device("mps")


def test_free_memory_of_the_cpu_is_what_the_machine_has():
    found = device_memory(check_device("cpu"))
    assert 0 < found.free <= found.total <= psutil.virtual_memory().total


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A control group tree of our own; `limit(folder, bytes, used, idle)` sets one up."""
    monkeypatch.setattr(devices, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(devices, "MEMBERSHIP", tmp_path / "membership")

    def limit(folder, names, figures):
        place = tmp_path / "cgroup" / folder
        place.mkdir(parents=True, exist_ok=True)
        (place / names[0]).write_text(f"{figures[0]}\n")
        (place / names[1]).write_text(f"{figures[1]}\n")
        (place / "memory.stat").write_text(f"anon 5\n{names[2]} {figures[2]}\nother 1\n")
        return tmp_path / "membership"

    return limit


MIB = 2**20
V1, V2 = devices._V1, devices._V2


def test_the_tightest_group_of_version_2_counts(groups):
    groups("", V2, ("max", 500 * MIB, 0))
    groups("user", V2, (300 * MIB, 200 * MIB, 50 * MIB))
    groups("user/shoal", V2, (200 * MIB, 30 * MIB, 10 * MIB)).write_text("0::/user/shoal\n")
    assert host_memory() == devices.Memory(150 * MIB, 200 * MIB)


def test_a_group_of_version_1_counts(groups):
    groups("memory/box", V1, (400 * MIB, 100 * MIB, 25 * MIB)).write_text("7:cpu:/\n4:memory:/box\n0::/\n")
    assert host_memory() == devices.Memory(325 * MIB, 400 * MIB)


def test_a_container_that_sees_only_its_own_root(groups):
    groups("", V2, (100 * MIB, 20 * MIB, 0)).write_text("0::/docker/0123/of-the-host\n")
    assert host_memory() == devices.Memory(80 * MIB, 100 * MIB)


@pytest.mark.parametrize("membership", ["", "0::/\n", "4:memory:/\n"])
def test_without_limits_the_machine_counts(groups, tmp_path, membership):
    (tmp_path / "membership").write_text(membership)
    groups("", V2, ("max", 1, 0))
    groups("memory", V1, (2**63 - 4096, 1, 0))
    assert host_memory().total == psutil.virtual_memory().total
