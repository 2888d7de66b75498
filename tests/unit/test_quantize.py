"""Quantization in place on the CPU: error against fp32 per kind, what is replaced and what is left."""

import copy
import logging

import bitsandbytes as bnb
import pytest
import torch
import transformers
from shoal.blocks.choices import QUANTIZATIONS
from shoal.blocks.errors import QuantizationError
from shoal.blocks.quantize import bytes_per_param, maker, quantize_
from shoal.blocks.quantize_experts import QuantizedExperts
from shoal.blocks.quantize_linear import FOUR_BIT_BLOCK
from torch import nn

SHAPE = {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 96}
MOE = SHAPE | {"num_key_value_heads": 2, "intermediate_size": 128, "num_experts_per_tok": 2}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SHAPE, intermediate_size=256),
    "gpt2": transformers.GPT2Config(n_embd=128, n_layer=1, n_head=4, vocab_size=96, bos_token_id=0, eos_token_id=0),
    "falcon": transformers.FalconConfig(**SHAPE, bos_token_id=0, eos_token_id=0),
    "mixtral": transformers.MixtralConfig(**MOE, num_local_experts=4),
    "qwen3_moe": transformers.Qwen3MoeConfig(**MOE, num_experts=4, moe_intermediate_size=64),
    "gpt_oss": transformers.GptOssConfig(**MOE, num_local_experts=4, head_dim=32, eos_token_id=0, pad_token_id=0),
}
# Relative error of one matrix with Gaussian weights: int8 rounds at absmax/254, 4-bit codes at a few percent of absmax.
BOUNDS = {"none": (0.0, 1e-6), "int8": (1e-3, 0.015), "nf4": (0.05, 0.11), "fp4": (0.07, 0.13)}


class Pair(nn.Module):
    """A block in small: a matrix with and one without bias, a norm, a router."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.up = nn.Linear(256, 384, dtype=dtype)
        self.down = nn.Linear(384, 256, bias=False, dtype=dtype)
        self.norm = nn.LayerNorm(256, dtype=dtype)
        self.gate = nn.Linear(256, 4, dtype=dtype)
        self.register_buffer("angles", torch.arange(3.0))

    def forward(self, x):
        return self.down(self.up(x))


def relative(found, expected):
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("shape", [(1, 256), (1, 1, 256), (33, 256), (2, 5, 256)], ids=str)
def test_error_against_fp32_is_what_the_format_gives_in_decode_and_batch_shapes(kind, shape):
    torch.manual_seed(0)
    exact = Pair().eval()
    quantized = copy.deepcopy(exact)
    quantize_(quantized, kind, "cpu", torch.float32)
    x = torch.randn(shape)
    with torch.inference_mode():
        found, expected = quantized.up(x), exact.up(x)
        assert quantized(x).shape == (*shape[:-1], 256)
    low, high = BOUNDS[kind]
    assert found.dtype == torch.float32
    assert low <= relative(found, expected) <= high
    assert torch.isfinite(found).all()


def test_the_formats_are_ordered_as_published():
    torch.manual_seed(0)
    exact, x = Pair().eval(), torch.randn(64, 256)
    errors = []
    with torch.inference_mode():
        for kind in QUANTIZATIONS:
            quantized = copy.deepcopy(exact)
            quantize_(quantized, kind, "cpu", torch.float32)
            errors.append(relative(quantized(x), exact(x)))
    assert errors == sorted(errors)


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_of_hidden_states_comes_out_as_it_went_in(kind, dtype):
    torch.manual_seed(0)
    exact = Pair().eval()
    quantized = copy.deepcopy(exact)
    quantize_(quantized, kind, "cpu", dtype)
    x = torch.randn(3, 256)
    with torch.inference_mode():
        found, expected = quantized(x.to(dtype)), exact(x)
    assert found.dtype == dtype
    assert relative(found, expected) < {"int8": 0.03}.get(kind, 0.2)


def test_outlying_activations_keep_16_bits_under_int8():
    torch.manual_seed(0)
    exact = Pair().eval()
    quantized = copy.deepcopy(exact)
    quantize_(quantized, "int8", "cpu", torch.float32)
    x = torch.randn(8, 256)
    x[:, 17] *= 200  # at threshold 0 this column would leave the others a handful of levels
    with torch.inference_mode():
        with_threshold = relative(quantized.up(x), exact.up(x))
        quantized.up.state.threshold = 0.0
        without = relative(quantized.up(x), exact.up(x))
    assert with_threshold < 0.02
    assert without > 5 * with_threshold or without > 0.02


def test_only_matrices_are_replaced():
    block = Pair()
    quantize_(block, "nf4", "cpu", torch.bfloat16)
    assert isinstance(block.up, bnb.nn.Linear4bit)
    assert block.up.weight.quant_state.nested  # double quantization
    assert type(block.gate) is nn.Linear
    assert block.gate.weight.dtype == block.norm.weight.dtype == block.up.bias.dtype == torch.bfloat16
    assert block.angles.dtype == torch.float32
    assert not block.training
    assert not any(parameter.requires_grad for parameter in block.parameters())
    other = Pair()
    quantize_(other, "fp4", "cpu", torch.float32)
    assert other.up.weight.quant_state.quant_type == "fp4"
    assert not other.up.weight.quant_state.nested


def unfolded(weight, state, shape):
    """The matrix [out, in] that four-bit data stand for, by nothing but their definition."""
    pairs = weight.detach().reshape(-1).long()
    values = state.code.float()[torch.stack([pairs >> 4, pairs & 15], 1).reshape(-1)]
    scales = state.absmax
    if state.nested:
        inner = state.state2
        scales = inner.code[scales.long()] * inner.absmax.repeat_interleave(256)[: len(scales)] + state.offset
    return (values * scales.repeat_interleave(64)[: len(values)])[: shape[0] * shape[1]].reshape(shape)


@pytest.fixture
def avx512(monkeypatch):
    """bitsandbytes takes this processor for one that multiplies bfloat16 with AVX-512, and packs matrices for it."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: 1)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 9, 0])
@pytest.mark.parametrize("shape", [(48, 72), (33, 64), (32, 96), (64, 63), (7, 5), (1, 1)], ids=str)
@pytest.mark.usefixtures("avx512")
def test_four_bits_of_any_shape_multiply_as_what_they_stand_for(kind, dtype, rows, shape):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(shape), torch.randn(shape[0]), torch.randn(rows, shape[1]).to(dtype)
    linear = maker(kind, torch.device("cpu"), dtype)(weight, bias)
    matrix = unfolded(linear.weight, linear.quant_state, shape)
    with torch.inference_mode():
        found, expected = linear(x), x.float() @ matrix.to(dtype).float().T + bias.to(dtype).float()
    assert found.dtype == dtype
    assert torch.allclose(found.float(), expected, rtol=3 * torch.finfo(dtype).eps, atol=1e-5 + torch.finfo(dtype).eps)
    assert relative(matrix, weight) < BOUNDS[kind][1]
    assert linear.quant_state.shape[-1] == FOUR_BIT_BLOCK  # AVX-512 reads scales wrong where rows are no whole blocks


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
@pytest.mark.usefixtures("avx512")
def test_blocks_of_odd_shapes_compute(kind):
    torch.manual_seed(0)
    shape = SHAPE | {"hidden_size": 48, "intermediate_size": 72}
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**shape)).eval()
    exact = copy.deepcopy(model)
    quantize_(model.base_model.layers, kind, "cpu", torch.float32)
    with torch.inference_mode():
        for tokens in (torch.arange(18).reshape(2, 9), torch.tensor([[5]])):
            assert relative(model(tokens).logits, exact(tokens).logits) < {"int8": 0.02}.get(kind, 0.3)


def stored_bytes(weight, kind):
    """Bytes that a quantized matrix really takes: codes, scales, scales of scales; constant tables left out."""
    codes = weight.data.nbytes
    if kind == "int8":
        return codes
    state = weight.quant_state
    return codes + state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
def test_bytes_per_param_is_what_is_stored(kind):
    block = nn.Sequential(nn.Linear(1024, 1024, bias=False))
    quantize_(block, kind, "cpu", torch.float32)
    assert stored_bytes(block[0].weight, kind) / 2**20 == pytest.approx(bytes_per_param(kind), rel=1e-6)


def test_bytes_per_param_of_none_is_the_dtype():
    assert bytes_per_param("none") == 2
    assert bytes_per_param("none", torch.float32) == 4


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
def test_whole_blocks_of_each_layout_compute(family, kind):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    exact = copy.deepcopy(model)
    base = model.base_model
    quantize_(base.h if hasattr(base, "h") else base.layers, kind, "cpu", torch.float32)
    tokens = torch.arange(18).reshape(2, 9)
    with torch.inference_mode():
        found, expected = model(tokens).logits, exact(tokens).logits
    assert torch.isfinite(found).all()
    assert 1e-3 < relative(found, expected) < {"int8": 0.15}.get(kind, 0.5)
    left = [name for name, module in base.named_modules() if type(module) is nn.Linear]
    assert not left
    assert any(isinstance(module, QuantizedExperts) for module in base.modules()) == (
        "num_experts_per_tok" in model.config
    )


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_experts_taken_apart_compute_what_the_fused_ones_do(family):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]).eval()
    (fused,) = (
        module for module in model.modules() if hasattr(module, "gate_up_proj") and hasattr(module, "down_proj")
    )
    for parameter in fused.parameters():
        nn.init.normal_(parameter, std=0.1)
    exact = copy.deepcopy(fused)
    apart = QuantizedExperts(fused, plain_linear)
    hidden, weights = torch.randn(7, 128), torch.rand(7, 2)
    indices = torch.stack([torch.randperm(4)[:2] for _ in range(7)])
    with torch.inference_mode():
        assert torch.allclose(apart(hidden, indices, weights), exact(hidden, indices, weights), atol=1e-5)
    assert not list(fused.parameters())  # the fused copy is not kept beside


def plain_linear(weight, bias):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight.data, linear.bias = weight, None if bias is None else nn.Parameter(bias)
    return linear


def test_fused_weights_of_an_unknown_kind_stay_and_are_named(caplog):
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixed = nn.Module()
            self.mixed.stack = nn.Parameter(torch.ones(2, 3, 4))

    block = Strange()
    with caplog.at_level(logging.WARNING):
        quantize_(block, "nf4", "cpu", torch.bfloat16)
    assert "mixed has fused weights" in caplog.text
    assert block.mixed.stack.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["int4", "", "NF4", "gptq"])
def test_an_unknown_kind_is_refused_with_the_four_names(kind):
    with pytest.raises(QuantizationError, match="choose one of none, int8, nf4, fp4"):
        quantize_(Pair(), kind, "cpu", torch.float32)
    with pytest.raises(QuantizationError, match="choose one of none, int8, nf4, fp4"):
        bytes_per_param(kind)


def test_what_cannot_be_done_in_place_is_refused():
    with pytest.raises(QuantizationError, match="pass the module that contains it"):
        quantize_(nn.Linear(4, 4), "int8", "cpu", torch.float32)
    with torch.device("meta"):
        empty = Pair()
    with pytest.raises(QuantizationError, match="not loaded yet"):
        quantize_(empty, "int8", "cpu", torch.float32)


def test_int8_does_not_log_at_each_call(caplog):
    block = Pair()
    quantize_(block, "int8", "cpu", torch.float32)
    with caplog.at_level(logging.INFO), torch.inference_mode():
        block(torch.randn(2, 256))
    assert not caplog.text
