"""Owns launching skinny.cu on what a matrix consists of; must not know who keeps it, or which variant is best.

The kernel computes `x [T, K] @ W [N, K]^T` for at most 64 rows, bound by reading W once.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from shoal.blocks.kernels.nvrtc import CudaKernel, compile_cubin, is_there
from shoal.blocks.kernels.variants import DENSE, FOUR_BIT, INT8, Variant

if TYPE_CHECKING:
    from shoal.blocks.kernels.grouped import Pairs

MOST_ROWS = 64
_THREADS = 256
_WAVES = 2  # of blocks, where matrices differ in how many rows meet them
ACTIVATIONS = {None: 0, "silu": 1, "gelu_tanh": 2, "gelu": 3}


@dataclass(frozen=True)
class Operands:
    """A weight matrix as the kernel reads it: its form, one of kernels.variants, and bitsandbytes' own data."""

    form: int
    out_features: int
    in_features: int
    weight: torch.Tensor
    scales: torch.Tensor | None = None  # four-bit: a block's absmax; int8: a row's
    code: torch.Tensor | None = None  # the 16 values of the four-bit codes
    inner: torch.Tensor | None = None  # double quantization: the 256 values of the scales' codes
    outer: torch.Tensor | None = None  # their own scales, one for 256
    offset: torch.Tensor | None = None  # and what was subtracted before

    @property
    def name(self) -> str:
        """How the tuner's file calls the format."""
        return {DENSE: "dense", FOUR_BIT: "4bit" if self.outer is None else "4bit-nested", INT8: "int8"}[self.form]


@dataclass(frozen=True, slots=True)
class Order:
    """The order that skinny.cu's `arrange` puts states in, in which a warp's lanes take them: `tiles` of 8 rows, and
    columns as they meet weights of 16 bits (`dense`) or of fewer."""

    tiles: int
    dense: bool


@dataclass(frozen=True, slots=True)
class Arranged:
    """States `[T, K]` that lie in an `Order`, as a tensor `[8 * tiles, K]`; what lies there for no row is not read."""

    states: torch.Tensor
    rows: int
    order: Order


def order_of(operands: Operands, variant: Variant, rows: int) -> Order | None:
    """How a variant wants so many rows of states; None: as they are."""
    return Order(_tiles(rows), operands.form == DENSE) if variant.arranged else None


def fits(operands: Operands) -> bool:
    """Whether the kernel runs there at all: an NVIDIA device with bf16 matrix units, and NVRTC."""
    device = operands.weight.device
    if device.type != "cuda" or torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return is_there()


def run(
    operands: Operands,
    x: torch.Tensor | Arranged,
    variant: Variant,
    *,
    bias: torch.Tensor | None = None,
    gated: str | None = None,
    order: Order | None = None,
) -> torch.Tensor:
    """`x [T, K]`, at most MOST_ROWS rows -> `[T, N]` (`[T, N / 2]` if gated, and then in an `order` if one is given).

    A variant that splits K gives float32 sums `[S, T, N]` instead. Raises NvrtcError if the kernel does not compile or
    start, ValueError for states in another order than the variant's.
    """
    arranges = variant.arranged and not isinstance(x, Arranged)
    if isinstance(x, Arranged):
        rows, x = x.rows, _states(x, order_of(operands, variant, x.rows))
    else:
        rows, x = x.shape[0], _readable(x)
    n_out = operands.out_features // (1 if gated is None else 2)
    shape: tuple[int, ...] = (rows if order is None else 8 * order.tiles, n_out)
    shape, dtype = ((variant.splits, *shape), torch.float32) if variant.splits > 1 else (shape, x.dtype)
    out = torch.empty(shape, dtype=dtype, device=x.device)
    defines = _defines(operands, rows, variant, x.dtype, gated, order, early=_early(operands, arranges=arranges))
    if arranges:
        x = _arranged(x, defines)
    o = operands
    pointers = (o.weight, o.scales, o.code, o.inner, o.outer, o.offset, bias, out)
    grid = _grid(n_out, variant, x.device, gated=gated is not None)
    kernel = _kernel(x.device, "skinny", defines)
    kernel.launch(grid, _THREADS, (x, x.stride(0), *pointers, rows, o.out_features, o.in_features))
    return out


def run_experts(
    operands: Operands,
    x: torch.Tensor,
    pairs: Pairs,
    variant: Variant,
    rows: int,
    *,
    bias: torch.Tensor | None = None,
    gated: str | None = None,
    shares: torch.Tensor | None = None,
) -> torch.Tensor:
    """`[pairs, N]` in x's dtype (`[pairs, N / 2]` if gated): every pair's row of x times its expert's matrix; `rows` of
    an expert's pairs are taken at a time. `operands`, `bias`: of all experts, one below the other; x `[T, K]`.

    With `shares [pairs]`, float32, x has a row for every pair, and the results, float32, are multiplied with them:
    `[pairs a token, T, N]`. Raises NvrtcError if the kernel does not compile or start.
    """
    x, count, n = _readable(x), len(pairs.order), operands.out_features // pairs.experts
    n_out = n if gated is None else n // 2
    out = torch.empty((count, n_out), dtype=x.dtype if shares is None else torch.float32, device=x.device)
    defines = _defines(operands, rows, variant, x.dtype, gated, None, early=False)
    kernel = _kernel(x.device, "skinny", (*defines, ("EXPERTS", 1), ("SHARED", int(shares is not None))))
    by_pair = count < pairs.experts
    asked = count if by_pair else pairs.experts
    blocks, _ = _grid(n_out, variant, x.device, gated=gated is not None, beside=asked)
    o = operands
    pointers = (o.weight, o.scales, o.code, o.inner, o.outer, o.offset, bias, out)
    numbers = (count, n, o.in_features, pairs.order, pairs.starts, pairs.owners, shares, pairs.each, int(by_pair))
    kernel.launch((blocks, asked), _THREADS, (x, x.stride(0), *pointers, *numbers))
    return out


def _readable(x: torch.Tensor) -> torch.Tensor:
    """The same rows, aligned and spaced as the kernel loads them."""
    if x.stride(1) != 1 or x.stride(0) % 8 != 0 or x.data_ptr() % 16 != 0:
        return x.clone(memory_format=torch.contiguous_format)
    return x


def _states(given: Arranged, wanted: Order | None) -> torch.Tensor:
    if given.order != wanted:
        raise ValueError(f"states lie in the order {given.order}, and the kernel reads {wanted}")
    return given.states


def _arranged(x: torch.Tensor, defines: tuple[tuple[str, int], ...]) -> torch.Tensor:
    rows, k = x.shape
    padded = 8 * dict(defines)["NT"]
    out = torch.empty((padded, k), dtype=x.dtype, device=x.device)
    grid = (-(-padded * k // 8 // _THREADS), 1)
    _kernel(x.device, "arrange", defines).launch(grid, _THREADS, (x, x.stride(0), out, rows, k))
    return out


def _defines(
    operands: Operands,
    rows: int,
    variant: Variant,
    dtype: torch.dtype,
    gated: str | None,
    order: Order | None,
    *,
    early: bool,
) -> tuple[tuple[str, int], ...]:
    return (
        ("KIND", operands.form),
        ("HALF", int(dtype == torch.float16)),
        ("MT", variant.tiles),
        ("ABREAST", variant.abreast),
        ("NT", _tiles(rows)),
        ("Q", variant.chunks),
        ("ACT", ACTIVATIONS[gated]),
        ("NESTED", int(operands.outer is not None)),
        ("PAIRED", int(variant.paired)),
        ("ARRANGED", int(variant.arranged)),
        ("ORDERED", 0 if order is None else 1 if order.dense else 2),
        ("EARLY", int(early)),
        ("PARTIAL", int(variant.splits > 1)),
        ("CTAS", variant.resident),
    )


def _tiles(rows: int) -> int:
    return next(n for n in (1, 2, 4, 8) if rows <= 8 * n)


@functools.cache
def _kernel(device: torch.device, name: str, defines: tuple[tuple[str, int], ...]) -> CudaKernel:
    table = dict(defines)
    lines = (512 if table["KIND"] == FOUR_BIT else 0) + 2 * 8 * 4 * table["MT"] if name == "skinny" else 0
    cubin = _machine_code(defines, torch.cuda.get_device_capability(device))
    return CudaKernel(cubin, name, device, lines * 128, early=bool(table["EARLY"]) and name == "skinny")


@functools.cache
def _machine_code(defines: tuple[tuple[str, int], ...], capability: tuple[int, int]) -> bytes:
    return compile_cubin(_source(), dict(defines), capability)


def source_mark() -> str:
    """A few letters that change with the kernel's source."""
    return hashlib.sha256(_source().encode()).hexdigest()[:8]


@functools.cache
def _source() -> str:
    return "".join(Path(__file__).with_name(name).read_text() for name in ("formats.cuh", "skinny.cu"))


def _grid(n_out: int, variant: Variant, device: torch.device, *, gated: bool, beside: int = 1) -> tuple[int, int]:
    """As many blocks as the device takes at once; `beside`: for so many matrices, which differ in their work."""
    tiles = -(-n_out // ((8 if gated else 16) * variant.tiles * variant.abreast))
    at_once = _multiprocessors(device) * variant.resident // variant.splits
    if beside > 1:
        at_once = -(-_WAVES * at_once // beside)
    return max(1, min(tiles, at_once)), variant.splits


def _early(operands: Operands, *, arranges: bool) -> bool:
    """Whole weights take so long to read that an early start saves nothing, and a graph of early starts is slower to
    launch (measured on an H100: 0.13 ms for 32 blocks); only behind `arrange` it saves the wait for a small kernel."""
    return (arranges or operands.form != DENSE) and _starts_early(operands.weight.device)


@functools.cache
def _starts_early(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
