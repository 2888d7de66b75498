"""Linear maps on a GPU: their Triton kernels in the interpreter, the choice between kernels, the file that keeps it.

What is written in CUDA (skinny.cu) needs a GPU: tests/gpu/test_linear_gpu.py.
"""

from __future__ import annotations

import functools
import itertools
import logging

import interpreted  # noqa: F401
import pytest
import torch
from full_disk import full_disk
from shoal.blocks.errors import QuantizationError
from torch.nn import functional

# isort: split
from bitsandbytes import functional as bnb
from shoal.blocks.kernels import dequantize, linear
from shoal.blocks.kernels.linear import kernel_linear
from shoal.blocks.kernels.tuner import Tuner
from shoal.blocks.kernels.variants import DENSE, FOUR_BIT, INT8, variants

KINDS = ("none", "int8", "nf4", "fp4")
ACTIVATIONS = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": functools.partial(functional.gelu, approximate="tanh"),
}


def make(n: int, k: int, kind: str, dtype: torch.dtype = torch.float16, **options) -> linear.KernelLinear:
    generator = torch.Generator().manual_seed(n * k)
    weight, bias = torch.randn((n, k), generator=generator) * 0.05, torch.randn(n, generator=generator)
    return kernel_linear(weight, bias, kind, "cpu", dtype, cache=None, **options)


def reference(module: linear.KernelLinear, x: torch.Tensor) -> torch.Tensor:
    return x.float() @ module.dequantized().T + module.bias.float()


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return float((got.float() - want).norm() / want.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "k", "rows"), [(70, 128, 3), (66, 192, 17), (33, 100, 2), (34, 64, 70)])
def test_products(kind: str, dtype: torch.dtype, n: int, k: int, rows: int) -> None:
    module = make(n, k, kind, dtype)
    x = torch.randn(rows, k + 5).to(dtype)[:, :k]  # rows that are not next to each other
    out = module(x)
    assert out.dtype == dtype
    assert error(out, reference(module, x)) < (6e-4 if dtype == torch.float16 else 5e-3)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bit_data_are_bitsandbytes_own(kind: str) -> None:
    weight = torch.randn(24, 192)
    module = kernel_linear(weight, None, kind, "cpu", torch.float16, cache=None)
    packed, state = bnb.quantize_4bit(weight.half(), blocksize=64, compress_statistics=kind == "nf4", quant_type=kind)
    assert torch.equal(module.matrix.packed, packed.flatten())
    assert torch.allclose(module.dequantized(torch.float16), bnb.dequantize_4bit(packed, state), rtol=1e-3)
    held = sum(t.numel() * t.element_size() for t in module.buffers())
    assert held < weight.numel() * 0.57 + 2048  # the codes and their scales, and no second copy


def test_int8_keeps_activations_in_16_bits() -> None:
    weight = torch.randn(16, 64)
    module = kernel_linear(weight, None, "int8", "cpu", torch.float16, cache=None)
    assert torch.allclose(module.dequantized(), weight, atol=float(weight.abs().max()) / 127)
    x = torch.randn(4, 64).half()
    x[0, 0] = 500.0  # would cost the other columns their digits if activations were rounded to int8
    assert error(module(x), x.float() @ module.dequantized().T) < 6e-4
    assert torch.equal(module(x)[1:], module(x[1:]))


@pytest.mark.parametrize("kind", ["none", "nf4"])
@pytest.mark.parametrize("gated", list(ACTIVATIONS))
def test_gated_products(kind: str, gated: str) -> None:
    module = make(48, 64, kind, gated=gated)
    x = torch.randn(5, 64).half()
    gate, up = reference(module, x).chunk(2, 1)
    assert error(module(x), ACTIVATIONS[gated](gate) * up) < 2e-3


@pytest.mark.parametrize("gated", [None, "silu"])
def test_no_rows(gated: str | None) -> None:
    assert make(48, 64, "nf4", gated=gated)(torch.empty(0, 64).half()).shape == (0, 24 if gated else 48)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_many_rows_go_piece_by_piece(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(300, 64, kind)
    x = torch.randn(65, 64).half()
    whole = module(x)
    monkeypatch.setattr(dequantize, "_PIECE", 128 * 64)
    monkeypatch.setattr(dequantize, "_buffers", {})
    assert torch.allclose(module(x), whole, rtol=2e-3, atol=2e-3)
    assert [b.numel() for b in dequantize._buffers.values()] == [128 * 64]


def test_wrong_arguments_are_named() -> None:
    weight = torch.randn(15, 64)
    for call, words in (
        (lambda: kernel_linear(weight, None, "int3", "cpu", torch.float16), "Unknown quantization 'int3'"),
        (lambda: kernel_linear(weight, None, "nf4", "cpu", torch.float32), "float16 or bfloat16"),
        (lambda: kernel_linear(weight, None, "nf4", "cpu", torch.float16, gated="silu"), "'silu' over 15 rows"),
        (lambda: kernel_linear(weight[:14], None, "nf4", "cpu", torch.float16, gated="relu"), "'relu'"),
    ):
        with pytest.raises(QuantizationError, match=words):
            call()


@pytest.mark.parametrize("form", [DENSE, FOUR_BIT, INT8])
@pytest.mark.parametrize("gated", [False, True])
def test_variants_suit_the_shape(form: int, gated: bool) -> None:
    for n, k, rows, partials in itertools.product(
        (16, 64, 4096), (64, 384, 896, 2880, 4096, 14336), linear.BUCKETS, (False, True)
    ):
        found = variants(form, n, k, rows, gated=gated, partials=partials)
        assert len(found) == len({v.name for v in found}) <= 6
        assert found or (form == DENSE and rows > 32)
        for v in found:
            assert k % ((128 if v.paired else 64) * v.chunks) == 0
            assert v.tiles * v.abreast * (8 if gated else 16) <= n // (2 if gated else 1)
            assert v.splits == 1 or (partials and not gated)
            assert not v.paired or (form == FOUR_BIT and rows <= 4)


def test_no_variants_for_what_the_kernel_cannot_compute() -> None:
    assert variants(FOUR_BIT, 4096, 100, 1, gated=False, partials=False) == []
    assert variants(FOUR_BIT, 14, 64, 1, gated=False, partials=False) == []


class Clock:
    """Measures a candidate by the number that it returns."""

    def __init__(self) -> None:
        self.measured = 0

    def __call__(self, run) -> float:
        self.measured += 1
        return run()


def test_tuner_measures_once_and_remembers(tmp_path) -> None:
    clock = Clock()
    ways = {"slow": lambda: 3.0, "fast": lambda: 1.0, "middling": lambda: 2.0}
    assert Tuner(tmp_path, clock).choose("shape", ways) == "fast"
    assert clock.measured == 3
    again = Tuner(tmp_path, clock)
    assert again.choose("shape", ways) == "fast"
    assert clock.measured == 3
    del ways["fast"]  # a choice that no longer exists is made anew
    assert again.choose("shape", ways) == "middling"
    assert again.choose("other", {"only": lambda: 1.0}) == "only"
    assert clock.measured == 5


def test_tuner_keeps_what_another_process_wrote(tmp_path) -> None:
    ways = {"a": lambda: 1.0, "b": lambda: 2.0}
    one, other = Tuner(tmp_path, Clock()), Tuner(tmp_path, Clock())
    one.choose("first", ways)
    other.choose("second", ways)
    clock = Clock()
    third = Tuner(tmp_path, clock)
    assert third.choose("first", ways) == third.choose("second", ways) == "a"
    assert clock.measured == 0


@pytest.mark.parametrize("text", ["{", "[1]", '{"shape": 3}', "\x00"])
def test_tuner_ignores_a_damaged_file(tmp_path, text: str) -> None:
    (tmp_path / "choices.json").write_text(text)
    assert Tuner(tmp_path, Clock()).choose("shape", {"a": lambda: 2.0, "b": lambda: 1.0}) == "b"
    clock = Clock()
    assert Tuner(tmp_path, clock).choose("shape", {"a": lambda: 2.0, "b": lambda: 1.0}) == "b"
    assert clock.measured == 0


def test_tuner_leaves_out_what_fails(tmp_path) -> None:
    def broken() -> float:
        raise RuntimeError("no such instruction")

    tuner = Tuner(tmp_path, Clock())
    assert tuner.choose("shape", {"broken": broken, "works": lambda: 9.0}) == "works"
    with pytest.raises(RuntimeError, match="shape"):
        tuner.choose("shape", {"broken": broken, "broken too": broken})


def test_tuner_works_where_it_may_not_write(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    tuner = Tuner(tmp_path / "file", Clock())
    assert tuner.choose("shape", {"a": lambda: 2.0, "b": lambda: 1.0}) == "b"


def test_tuner_leaves_nothing_half_on_a_full_disk_and_says_so_once(tmp_path, caplog) -> None:
    clock, ways = Clock(), {"a": lambda: 2.0, "b": lambda: 1.0}
    tuner = Tuner(tmp_path, clock)
    with caplog.at_level(logging.INFO), full_disk(4):
        assert [tuner.choose(key, ways) for key in ("one", "other", "one")] == ["b", "b", "b"]
    assert clock.measured == 4
    assert list(tmp_path.iterdir()) == []
    (line,) = (record.getMessage() for record in caplog.records)
    assert str(tmp_path / "choices.json") in line
