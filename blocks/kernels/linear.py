"""Owns linear maps for inference on a GPU: which kernel runs for which rows; must not know blocks or families.

Up to 64 rows a product is bound by reading the weights: kernels of our own read them as they are kept, and the choice
between their variants and the library's is measured for each shape. For more rows quantized weights are made 16-bit
again in a shared buffer, and the library multiplies.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from shoal.blocks.errors import QuantizationError
from shoal.blocks.kernels import dequantize, portable, skinny
from shoal.blocks.kernels.activation import gated_activation
from shoal.blocks.kernels.matrices import Matrix, matrix_of
from shoal.blocks.kernels.skinny import Arranged
from shoal.blocks.kernels.tuner import Tuner
from shoal.blocks.kernels.variants import DENSE, Variant, variants
from shoal.blocks.quantize import check_kind
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.blocks.kernels.skinny import Order

BUCKETS = (1, 2, 4, 8, 16, 32, 64)  # row counts that are tuned; others take the next larger one's choice
_TWICE = 2 * skinny.MOST_ROWS
_OTHER_WAYS = ("portable", "library")
_CACHE = Path.home() / ".cache" / "shoal" / "kernels"


class KernelLinear(nn.Module):
    """`x [T, K] -> [T, N]`, or `[T, N / 2]` when gated; the weights are in buffers and parameters of this module.

    gated: None, or "silu", "gelu_tanh", "gelu": the first half of the weight's rows makes the gate, the second half
    what it is multiplied with. partials: results may come as float32 sums `[S, T, N]`, which the consumer adds up.
    """

    bias: torch.Tensor | None

    def __init__(
        self,
        matrix: Matrix,
        bias: torch.Tensor | None,
        tuner: Tuner,
        *,
        gated: str | None,
        partials: bool,
    ) -> None:
        super().__init__()
        self.matrix = matrix
        self.register_buffer("bias", bias)
        self.gated, self.partials, self._tuner = gated, partials, tuner
        self.out_features, self.in_features = matrix.out_features, matrix.in_features
        self._chosen: dict[tuple[int, torch.dtype], str] = {}
        self._orders: dict[tuple[int, torch.dtype], Order | None] = {}

    @property
    def starts_early(self) -> bool:
        """Whether kernels around this one should be launched before the one ahead of them ends (`kernels.early`)."""
        return self.matrix.operands().form != DENSE

    def order(self, rows: int, dtype: torch.dtype) -> Order | None:
        """How so many rows of `x` had best lie, for who writes them anyway; None: as they are. Asked before such rows
        come for the first time, it measures with rows that lie so."""
        if not 0 < rows <= skinny.MOST_ROWS:
            return None
        key = _bucket(rows), dtype
        if key not in self._orders:
            name, operands = self._chosen.get(key) or self._choose(*key, arranged=True), self.matrix.operands()
            variant = next((v for v in self._variants(operands, key[0]) if v.name == name), None)
            self._orders[key] = None if variant is None else skinny.order_of(operands, variant, rows)
        return self._orders[key]

    def gives_order(self, rows: int, dtype: torch.dtype) -> bool:
        """Whether the results for so many rows can come in another order, for the matrix after this one."""
        return self.gated is not None and 0 < rows <= skinny.MOST_ROWS and self._name(rows, dtype) not in _OTHER_WAYS

    def ordered(self, x: torch.Tensor | Arranged, order: Order) -> Arranged:
        """As `forward`, with the results in an order that the next matrix asks for, where `gives_order`."""
        rows, dtype = (x.rows, x.states.dtype) if isinstance(x, Arranged) else (len(x), x.dtype)
        return Arranged(self._way(rows, dtype)(x, order=order), rows, order)

    def forward(self, x: torch.Tensor | Arranged) -> torch.Tensor:
        """`x [T, K]` in float16 or bfloat16, `Arranged` if `order` wishes it so; may be captured in a CUDA graph after
        a call with as many rows."""
        if isinstance(x, Arranged):
            return self._way(x.rows, x.states.dtype)(x)
        rows = x.shape[0]
        if rows == 0:
            return x.new_empty((0, self.out_features // (1 if self.gated is None else 2)))
        operands = self.matrix.operands()
        if skinny.MOST_ROWS < rows <= _TWICE and operands.form != DENSE and skinny.fits(operands):
            return self._twice(x)
        if rows > skinny.MOST_ROWS:
            return self._library(operands, x)
        return self._way(rows, x.dtype)(x)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The matrix [N, K] that the kernels multiply with, for tests and references."""
        operands = self.matrix.operands()
        out = torch.empty((self.out_features, self.in_features), dtype=dtype, device=operands.weight.device)
        return dequantize.dequantize(operands, out)

    def _way(self, rows: int, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
        return self._ways(self.matrix.operands(), _bucket(rows))[self._name(rows, dtype)]

    def _name(self, rows: int, dtype: torch.dtype) -> str:
        bucket = _bucket(rows)
        return self._chosen.get((bucket, dtype)) or self._choose(bucket, dtype)

    def _choose(self, bucket: int, dtype: torch.dtype, *, arranged: bool = False) -> str:
        """Measure; `arranged`: those who want their states in an order get them so."""
        operands = self.matrix.operands()
        device = operands.weight.device
        x = torch.randn((bucket, self.in_features), device=device).to(dtype)
        ways = self._ways(operands, bucket)
        runs = {name: functools.partial(way, x) for name, way in ways.items()}
        for variant in self._variants(operands, bucket) if arranged else ():
            if order := skinny.order_of(operands, variant, bucket):
                lying = x.repeat(-(-8 * order.tiles // bucket), 1)[: 8 * order.tiles]
                runs[variant.name] = functools.partial(ways[variant.name], Arranged(lying, bucket, order))
        key = f"{_place(device)} {operands.name} {self.out_features}x{self.in_features} {dtype} rows {bucket}"
        key += " in order" * arranged
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            name = self._tuner.choose(f"{key} {self.gated or 'plain'} {'split' if self.partials else 'whole'}", runs)
            runs[name]()  # compiles, where the choice came from the file
        self._chosen[bucket, dtype] = name
        return name

    def _variants(self, operands: skinny.Operands, bucket: int) -> list[Variant]:
        if not skinny.fits(operands):
            return []
        shape = (operands.form, self.out_features, self.in_features)
        return variants(*shape, bucket, gated=self.gated is not None, partials=self.partials)

    def _ways(self, operands: skinny.Operands, bucket: int) -> dict[str, Callable[..., torch.Tensor]]:
        """Each way to compute so many rows, by name."""
        ways: dict[str, Callable[..., torch.Tensor]] = {
            v.name: functools.partial(skinny.run, operands, variant=v, bias=self.bias, gated=self.gated)
            for v in self._variants(operands, bucket)
        }
        if ways and operands.form != DENSE:
            return ways
        if portable.fits(operands):
            ways["portable"] = functools.partial(self._portable, operands)
        else:
            ways["library"] = functools.partial(self._library, operands)
        return ways

    def _twice(self, x: torch.Tensor) -> torch.Tensor:
        """Two products one after the other: on an H100 two thirds of the time of writing the weights out in 16 bits."""
        parts = [self(x[: skinny.MOST_ROWS]), self(x[skinny.MOST_ROWS :])]
        if any(part.dim() == 3 for part in parts):  # sums of perhaps different numbers of shares
            return torch.cat(
                [part.sum(0, keepdim=True) if part.dim() == 3 else part[None].float() for part in parts], 1
            )
        return torch.cat(parts)

    def _portable(self, operands: skinny.Operands, x: torch.Tensor) -> torch.Tensor:
        return self._gate(portable.run(operands, x, self.bias))

    def _library(self, operands: skinny.Operands, x: torch.Tensor) -> torch.Tensor:
        if operands.form == DENSE:
            return self._gate(nn.functional.linear(x, operands.weight, self.bias))
        return self._gate(dequantize.multiply(operands, x, self.bias))

    def _gate(self, out: torch.Tensor) -> torch.Tensor:
        return out if self.gated is None else gated_activation(out, self.gated, out.dtype)


def kernel_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    kind: str,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    gated: str | None = None,
    partials: bool = False,
    cache: Path | None = _CACHE,
) -> KernelLinear:
    """A linear map of `weight` [N, K] (and `bias` [N]) on `device`, its weights kept as `kind` (see check_kind) says.

    For `gated` and `partials` see KernelLinear; `cache` is the folder of the measured choices, None for none. Raises
    QuantizationError for an unknown kind, dtype or activation, or gated weights with an odd number of rows.
    """
    check_kind(kind)
    if dtype not in (torch.float16, torch.bfloat16):
        raise QuantizationError(f"The GPU kernels compute in float16 or bfloat16, not in {dtype}.")
    if gated not in skinny.ACTIVATIONS or (gated is not None and weight.shape[0] % 2):
        raise QuantizationError(f"There is no gated activation {gated!r} over {weight.shape[0]} rows.")
    place = torch.device(device)
    matrix = matrix_of([weight], kind, place, dtype)
    if kind != "none":
        dequantize.reserve(matrix.operands(), dtype)
    held = None if bias is None else bias.detach().to(place, dtype).contiguous()
    return KernelLinear(matrix, held, _tuner(cache), gated=gated, partials=partials).eval()


@functools.cache
def _tuner(folder: Path | None) -> Tuner:
    return Tuner(folder)


@functools.cache
def _place(device: torch.device) -> str:
    """What besides the shape a choice depends on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name} torch {torch.__version__} kernel {skinny.source_mark()}"


def _bucket(rows: int) -> int:
    return next(b for b in BUCKETS if rows <= b)
