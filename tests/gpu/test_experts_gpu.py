"""Mixtures of experts on a CUDA device: our kernels against fp32 of the same weights, fused and by graph."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from shoal.blocks.span import Row
from test_span_gpu import N_BLOCKS, PAGES, checkpoint, cuda_span, error, exact_span, mixed_run, poison_pages, texts_of
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes to quantize"),
]
CUDA = torch.device("cuda")
MIXTURES = [
    ("mixtral", {"hidden_size": 256, "intermediate_size": 512}),
    ("mixtral", {"intermediate_size": 64, "num_local_experts": 40, "num_experts_per_tok": 6}),
    ("qwen3-moe", {"moe_intermediate_size": 64, "num_experts": 16, "num_experts_per_tok": 4}),
    ("gpt-oss", {"intermediate_size": 128}),
    ("gpt-oss", {"hidden_size": 192, "intermediate_size": 320, "num_local_experts": 32, "num_experts_per_tok": 4}),
]


def experts_of(count: int, hidden: int, inner: int) -> MixtralExperts:
    config = MixtralConfig(hidden_size=hidden, intermediate_size=inner, num_local_experts=count)
    config._experts_implementation = "eager"
    module = MixtralExperts(config)
    generator = torch.Generator().manual_seed(count)
    for parameter in module.parameters():
        values = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
        parameter.data = values.bfloat16().float()
    return module.eval()


@pytest.mark.parametrize("kind", ["none", "int8", "nf4", "fp4"])
@pytest.mark.parametrize(("count", "hidden", "inner", "each"), [(8, 512, 1792, 2), (130, 320, 128, 8)])
@torch.inference_mode()
def test_experts_against_fp32_of_the_same_weights(kind: str, count: int, hidden: int, inner: int, each: int) -> None:
    from shoal.blocks.kernels import dequantize
    from shoal.blocks.kernels.experts import KernelExperts

    module = KernelExperts(experts_of(count, hidden, inner), kind, CUDA, torch.bfloat16)
    exact = experts_of(count, hidden, inner).cuda()
    for name, matrix in (("gate_up_proj", module.up), ("down_proj", module.down)):
        whole = torch.empty((matrix.out_features, matrix.in_features), device=CUDA)
        getattr(exact, name).data = dequantize.dequantize(matrix.operands(), whole).view(count, -1, matrix.in_features)
    for tokens in (1, 2, 7, 33, 100, 600):
        generator = torch.Generator().manual_seed(tokens)
        x = torch.randn((tokens, hidden), generator=generator).cuda().bfloat16()
        shares, indices = torch.topk(torch.rand((tokens, count), generator=generator).cuda(), each, dim=-1)
        torch.full((600 * each, 4 * inner), torch.nan, device=CUDA)  # what was freed must not show
        found = module(x, indices, shares)
        assert error(found.float().cpu(), exact(x.float(), indices, shares).cpu()) < 0.01, tokens
        alone = module(x[-1:], indices[-1:], shares[-1:])
        assert error(alone.float().cpu(), found[-1:].float().cpu()) < 0.01


@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
@torch.inference_mode()
def test_states_that_are_no_numbers_harm_nobody_else(kind: str) -> None:
    span = cuda_span(checkpoint("mixtral", num_local_experts=40, num_experts_per_tok=6, intermediate_size=64), kind)
    texts = texts_of(span, [20, 20])
    for text in texts:
        span.forward(text.hidden[:19], [Row(text.pages, 0, 19)])
    rows = [Row(text.pages, 19, 1) for text in texts]
    hidden = torch.stack([text.hidden[19] for text in texts])
    wanted = span.forward(hidden, rows)[0].clone()
    for nonsense in (torch.nan, torch.inf, -torch.inf):
        hidden[1] = nonsense
        for _ in range(4):
            assert error(span.forward(hidden, rows)[0].float().cpu(), wanted.float().cpu()) < 0.01


@pytest.mark.parametrize(("variant", "sizes"), MIXTURES)
def test_our_layer_is_as_near_to_fp32_as_transformers_is(variant: str, sizes: dict[str, int]) -> None:
    """Of nine tokens in ten: where two experts are nearly equal, rounding decides which one a token gets."""
    held = checkpoint(variant, **sizes)
    exact = mixed_run(exact_span(held))

    def nearly_all(*, fused: bool) -> float:
        span = cuda_span(held, dtype=torch.float16, fused=fused)
        assert span.fused == fused
        poison_pages(span)
        return float(((mixed_run(span) - exact).norm(dim=1) / exact.norm(dim=1)).quantile(0.9))

    assert nearly_all(fused=True) < 1.2 * nearly_all(fused=False) + 0.001


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize(("variant", "sizes"), MIXTURES)
def test_graphs_of_mixtures_give_what_steps_without_give(variant: str, sizes: dict[str, int], kind: str) -> None:
    span = cuda_span(checkpoint(variant, **sizes), kind)
    assert span.fused
    assert not any(type(part).__module__.startswith("bitsandbytes") for part in span._parts.layers[1].modules())
    (text,) = texts_of(span, [40])
    span.forward(text.hidden[:30], [Row(text.pages, 0, 30)])
    outs = [span.forward(text.hidden[30:31], [Row(text.pages, 30, 1)]).clone() for _ in range(5)]
    assert len(span._steps.graphs) > 0
    assert torch.isfinite(outs[0]).all()
    assert all(torch.equal(out, outs[0]) for out in outs)
    assert (span.kv.n_pages, len(span.blocks)) == (PAGES, N_BLOCKS)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("variant", ["gpt2", "opt", "gpt-neox", "bloom", "gpt-oss"])
def test_other_families_by_our_matrices_are_as_near_as_by_bitsandbytes(variant: str, kind: str, monkeypatch) -> None:
    held = checkpoint(variant)
    exact = mixed_run(exact_span(held))

    def nearly_all() -> float:
        span = cuda_span(held, kind, dtype=torch.float16)
        poison_pages(span)
        return float(((mixed_run(span) - exact).norm(dim=1) / exact.norm(dim=1)).quantile(0.9))

    ours = nearly_all()
    monkeypatch.setattr("shoal.blocks.quantize.has_kernels", lambda *_: False)
    assert ours < 1.1 * nearly_all() + 0.001
