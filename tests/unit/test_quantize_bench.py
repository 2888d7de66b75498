"""The quantization benchmark, run as its user does, on a small random model; and its int8 schemes against integers."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).parents[2]
NAMES = ["fp32", "bf16", "int8_tensor", "int8_row", "int8_vector", "int8_zeropoint", "llm_int8", "fp4", "nf4", "nf4_dq"]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / "benches" / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


int8 = load("_int8")


def bench(*arguments):
    command = [str(ROOT / "scripts" / "bench"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.2)  # so that its matrices matter
    model.save_pretrained(folder)
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def test_it_prints_a_table_and_writes_every_key(tiny, tmp_path):
    text, found = tmp_path / "held.txt", tmp_path / "found.json"
    text.write_text(Path(__file__).read_text())
    done = bench("quant", "--model", tiny, "--text", text, "--tokens", 1024, "--context", 64, "--json", found)
    assert done.returncode == 0, done.stderr
    figures = json.loads(found.read_text())
    assert {f"ppl_{name}" for name in NAMES} | {f"bytes_per_param_{name}" for name in NAMES} <= set(figures)
    assert figures["tokens"] == 1024 - 1024 // 64
    assert figures["kl_fp32"] == 0 < figures["kl_bf16"] < figures["kl_fp4"]
    losses = {name: abs(figures[f"ppl_{name}"] / figures["ppl_fp32"] - 1) for name in NAMES}
    assert all(0 < losses[name] < 0.5 for name in NAMES if name != "fp32")
    assert losses["llm_int8"] < losses["fp4"]
    bytes_each = [figures[f"bytes_per_param_{name}"] for name in ("fp32", "bf16", "int8_tensor", "fp4", "nf4_dq")]
    assert bytes_each == sorted(bytes_each, reverse=True)
    assert bytes_each[:2] == [4, 2]
    for label in (
        "absmax by tensor",
        "LLM.int8()",
        "NF4, double quantization",
        "bytes per parameter",
        "NF4 against FP4",
        "KL",
    ):
        assert label in done.stdout


@pytest.mark.parametrize("arguments", [(), ("nothing",), ("../quant",), ("_int8",)])
def test_without_a_known_name_it_lists_the_benchmarks(arguments):
    done = bench(*arguments)
    assert done.returncode == 2
    assert not done.stdout
    assert "quant " in done.stderr


def test_an_unknown_model_is_one_line(tmp_path):
    done = bench("quant", "--model", tmp_path / "none")
    assert done.returncode == 1
    assert done.stderr.startswith("bench quant: There is no model directory")
    assert done.stderr.count("\n") == 1


def integers(x, step, zero=0):
    return (x / step).round().to(torch.int64) + zero


def test_by_vector_is_the_integer_product_with_outer_scales():
    torch.manual_seed(0)
    x, weight = torch.randn(5, 32), torch.randn(7, 32)
    rows, columns = x.abs().amax(1) / 127, weight.abs().amax(1) / 127
    product = integers(x, rows[:, None]) @ integers(weight, columns[:, None]).T
    found = int8.RoundedLinear(weight, None, int8.SCHEMES["int8_vector"])(x)
    assert torch.allclose(found, product * rows[:, None] * columns, atol=1e-5)


def test_by_zeropoint_is_the_integer_product_with_offsets():
    torch.manual_seed(0)
    x, weight = torch.rand(5, 32) + 1, torch.randn(7, 32)  # one-sided, where an offset helps
    steps = [(t.max() - t.min()) / 255 for t in (x, weight)]
    zeros = [(-t.min() / step).round().to(torch.int64) for t, step in zip((x, weight), steps, strict=True)]
    a, b = (integers(t, s, z).clamp(0, 255) - z for t, s, z in zip((x, weight), steps, zeros, strict=True))
    found = int8.RoundedLinear(weight, None, int8.SCHEMES["int8_zeropoint"])(x)
    assert torch.allclose(found, (a @ b.T) * steps[0] * steps[1], atol=1e-4)
    exact = x @ weight.T
    by_tensor = int8.RoundedLinear(weight, None, int8.SCHEMES["int8_tensor"])(x)
    assert (found - exact).norm() < (by_tensor - exact).norm()


def test_an_outlier_ruins_a_tensor_scale_and_not_a_row_scale():
    torch.manual_seed(0)
    x, weight = torch.randn(64, 32), torch.randn(16, 32)
    x[3, 5] = 500
    exact = x @ weight.T
    errors = []
    for name in ("int8_tensor", "int8_row", "int8_vector"):
        found = int8.RoundedLinear(weight, None, int8.SCHEMES[name])(x)
        errors.append((found - exact)[torch.arange(64) != 3].norm().item())
    assert errors[0] > 10 * errors[1]
    assert errors[1] > errors[2]


def test_what_hidden_states_lose_between_spans(tiny, tmp_path):
    text, found = tmp_path / "held.txt", tmp_path / "found.json"
    text.write_text(Path(__file__).read_text())
    done = bench(
        "activations", "--model", tiny, "--text", text, "--tokens", 512, "--context", 64, "--span", 1, "--json", found
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(found.read_text())
    assert figures["boundaries"] == 3
    assert figures["kl_float32"] == 0 < figures["kl_float16"] < figures["kl_bfloat16"] < figures["kl_int8"] < 0.1
    assert [figures[f"bytes_per_token_{form}"] for form in ("float32", "bfloat16", "int8")] == [256, 128, 66]
    assert "int8" in done.stdout
