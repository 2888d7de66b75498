"""The fused forward through our GPU kernels, run by Triton's interpreter on the CPU, against our own layer in torch.

In float16: the interpreter computes no products in bfloat16. Graphs, and the matrices' kernels, need a GPU (tests/gpu).
"""

from __future__ import annotations

import interpreted  # noqa: F401
import pytest
import torch
from shoal.blocks.checkpoint import resolve
from shoal.blocks.kv import KVPool
from shoal.blocks.span import Row, Span, SpanOptions, load_span
from tiny_models import save_tiny

# isort: split
from shoal.blocks import graphs, makers, parts, quantize, steps
from shoal.blocks.kernels.any_shape import AnyShape
from shoal.blocks.kernels.experts import KernelExperts, Mixture
from shoal.blocks.sizes import split
from shoal.blocks.steps import Steps

PAGES = ([5, 3, 9, 1], [2, 8, 4, 20])
VARIANTS = ("llama", "gemma2", "gemma3", "olmo2", "glm4", "phi3-longrope", "granite", "qwen3", "mistral")
FORWARDS = (  # a prompt; a decode with a chunk; a decode with the rest of it; two decodes
    [Row(PAGES[0], 0, 7, 7)],
    [Row(PAGES[0], 7, 1), Row(PAGES[1], 0, 5, 9)],
    [Row(PAGES[0], 8, 1), Row(PAGES[1], 5, 4, 9)],
    [Row(PAGES[0], 9, 1), Row(PAGES[1], 9, 1)],
)


def through_kernels(span: Span, hidden: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    kernels = Steps.__new__(Steps)  # without graphs, which exist on a GPU alone
    kernels._span, kernels._kv, kernels._rotary = steps.FusedSpan(span._parts, span.kv), span.kv, span._parts.rotary
    held = tuple(rows)
    with torch.inference_mode():
        inputs = kernels._inputs(split(held), span.blocks, kernels._turns(held))
        return kernels._span.forward(hidden.half(), span.blocks, inputs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_kernels_compute_what_the_layer_computes(variant: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(graphs, "choose_splits", lambda *_: 3)  # as many parts as a GPU would ask for
    save_tiny(variant, tmp_path)
    checkpoint = resolve(str(tmp_path))
    exact = load_span(checkpoint, range(1, 3), SpanOptions(kv_pages=24, dtype=torch.float32))
    half = load_span(checkpoint, range(1, 3), SpanOptions(kv_pages=24, dtype=torch.float16))
    assert exact.fused
    for index in half.blocks:  # what the last owner of a page left behind must not show
        half.kv.block(index).keys.fill_(torch.nan)
        half.kv.block(index).values.fill_(torch.nan)
    generator = torch.Generator().manual_seed(3)
    for rows in FORWARDS:
        tokens = sum(row.count for row in rows)
        hidden = torch.randn((tokens, exact.spec.hidden_size), generator=generator)
        expected, found = exact.forward(hidden, rows), through_kernels(half, hidden, rows).float()
        error = (found - expected).norm() / expected.norm()
        assert 1e-6 < error < 5e-3, (rows, error)


@pytest.mark.parametrize(("variant", "sizes"), [
    ("mixtral", {"intermediate_size": 128}),
    ("qwen3-moe", {"moe_intermediate_size": 64, "num_experts": 9, "num_experts_per_tok": 3}),
    ("gpt-oss", {"intermediate_size": 128}),
])  # fmt: skip
def test_mixtures_of_experts_are_fused_too(variant: str, sizes: dict[str, int], tmp_path, monkeypatch) -> None:
    """Quantized ones keep what their kernels read as it is, whatever the rest of the block computes in."""
    monkeypatch.setattr(graphs, "choose_splits", lambda *_: 3)
    save_tiny(variant, tmp_path, **sizes)
    checkpoint = resolve(str(tmp_path))
    exact = load_span(checkpoint, range(1, 3), SpanOptions(kv_pages=24, dtype=torch.float32))
    assert not exact.fused
    for module in (parts, makers):
        monkeypatch.setattr(module, "has_kernels", lambda *_: True)
    half = load_span(checkpoint, range(1, 3), SpanOptions(kv_pages=24, dtype=torch.float16, short=False))
    assert half.fused
    assert isinstance(half._parts.layers[2].mixture, Mixture)
    generator = torch.Generator().manual_seed(3)
    for rows in FORWARDS:
        hidden = torch.randn((sum(row.count for row in rows), exact.spec.hidden_size), generator=generator)
        expected, found = exact.forward(hidden, rows), through_kernels(half, hidden, rows).float()
        error = (found - expected).norm() / expected.norm()
        assert 1e-6 < error < 5e-3, (rows, error)
    for quantization in ("nf4", "int8"):
        options = SpanOptions(24, quantization, dtype=torch.float16, short=False)
        held = load_span(checkpoint, range(2, 3), options)._parts.layers[2].mixture.mlp
        assert (held.router if variant == "gpt-oss" else held.gate).weight.dtype == torch.float16
        scales = [one for name, one in held.experts.named_buffers() if "bias" not in name and one.is_floating_point()]
        assert len(scales) > 1
        assert all(one.dtype == torch.float32 for one in scales)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize(("variant", "sizes"), [
    ("gpt2", {}), ("falcon-multi-query", {}), ("gpt-oss", {"intermediate_size": 128}), ("opt", {}), ("bloom", {}),
    ("gpt-neox", {}),
])  # fmt: skip
def test_other_families_matrices_are_ours_as_well(
    variant: str, sizes: dict[str, int], quantization: str, tmp_path, monkeypatch
) -> None:
    save_tiny(variant, tmp_path, **sizes)
    checkpoint, options = resolve(str(tmp_path)), SpanOptions(24, quantization, dtype=torch.float16)
    plain = load_span(checkpoint, range(1, 3), options)
    monkeypatch.setattr(quantize, "has_kernels", lambda *_: True)
    ours = load_span(checkpoint, range(1, 3), options)
    made = [module for layer in ours._parts.layers.values() for module in layer.modules()]
    assert any(isinstance(module, AnyShape) for module in made)
    assert not any(type(module).__module__.startswith("bitsandbytes") for module in made)
    assert any(isinstance(module, KernelExperts) for module in made) == (variant == "gpt-oss")
    generator = torch.Generator().manual_seed(5)
    for rows in FORWARDS:
        hidden = torch.randn((sum(row.count for row in rows), ours.spec.hidden_size), generator=generator).half()
        expected, found = plain.forward(hidden, rows).float(), ours.forward(hidden, rows).float()
        assert (found - expected).norm() / expected.norm() < (0.03 if quantization == "int8" else 5e-3)


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_quantized_matrices_are_multiplied_as_they_are(quantization: str, tmp_path, monkeypatch) -> None:
    """The same blocks with the kernels' matrices, and with what these are once they are made whole again."""
    monkeypatch.setattr(graphs, "choose_splits", lambda *_: 2)
    monkeypatch.setattr(makers, "has_kernels", lambda *_: True)
    save_tiny("llama", tmp_path)
    checkpoint = resolve(str(tmp_path))
    half = load_span(checkpoint, range(1, 3), SpanOptions(24, quantization, dtype=torch.float16))
    exact = load_span(checkpoint, range(1, 3), SpanOptions(24, quantization, dtype=torch.float16))
    exact.dtype, exact.kv = torch.float32, KVPool(exact.spec, exact.blocks, 24, "cpu", torch.float32)
    for block in exact._parts.layers.values():
        block.gated = False
        for name in ("qkv", "o", "gate_up", "down"):
            held = getattr(block, name)
            linear = torch.nn.Linear(held.in_features, held.out_features, bias=held.bias is not None)
            linear.weight = torch.nn.Parameter(held.dequantized(), requires_grad=False)
            if held.bias is not None:
                linear.bias = torch.nn.Parameter(held.bias, requires_grad=False)
            setattr(block, name, linear)
        block.float()
    generator = torch.Generator().manual_seed(4)
    for rows in FORWARDS:
        hidden = torch.randn((sum(row.count for row in rows), exact.spec.hidden_size), generator=generator)
        expected, found = exact.forward(hidden, rows), through_kernels(half, hidden, rows).float()
        assert 1e-6 < (found - expected).norm() / expected.norm() < 5e-3


def test_kernels_start_early_around_quantized_matrices_only(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(makers, "has_kernels", lambda *_: True)
    save_tiny("llama", tmp_path)
    for quantization, early in (("none", False), ("nf4", True), ("int8", True)):
        span = load_span(resolve(str(tmp_path)), range(1), SpanOptions(24, quantization, dtype=torch.float16))
        assert steps.FusedSpan(span._parts, span.kv).starts_early is early
