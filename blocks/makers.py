"""Owns which module holds a fused block's matrix, by quantization and device; must not know blocks or families."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from shoal.blocks.cpu.short import ShortLinear
from shoal.blocks.fused import Makers
from shoal.blocks.kernels import has_kernels
from shoal.blocks.packed import PackedLinear, can_pack
from torch import nn

if TYPE_CHECKING:
    import ctypes

    from shoal.blocks.fused import MakeLinear


def makers_for(quantization: str, device: torch.device, dtype: torch.dtype, short: ctypes.CDLL | None = None) -> Makers:
    """Makers of matrices in `quantization` (one of blocks.choices.QUANTIZATIONS) on `device`, computing in `dtype`.
    `short`: what goes over them, not quantized and on a CPU, for a few tokens."""
    if has_kernels(device, dtype):
        return _kernel_makers(quantization, device, dtype)
    if short is not None:
        make: MakeLinear = functools.partial(_short, dtype=dtype, found=short)
    else:
        make = _maker(quantization, device, dtype)
    return Makers(make, make)


def _maker(quantization: str, device: torch.device, dtype: torch.dtype) -> MakeLinear:
    if quantization == "none":
        return functools.partial(_dense, device=device, dtype=dtype)
    from shoal.blocks.quantize import check_kind, maker

    check_kind(quantization)
    return maker(quantization, device, dtype)


def _dense(weight: torch.Tensor, bias: torch.Tensor | None, device: torch.device, dtype: torch.dtype) -> nn.Module:
    linear = _plain(weight.to(device), bias if bias is None else bias.to(device), dtype)
    return PackedLinear(linear) if device.type == "cpu" and can_pack(dtype) else linear


def _short(weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype, found: ctypes.CDLL) -> nn.Module:
    return ShortLinear(_plain(weight, bias, dtype, copy=True), found)


def _plain(weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype, *, copy: bool = False) -> nn.Linear:
    """As torch keeps it. `copy`: in memory of its own, and not where a file's bytes happen to lie."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.to(dtype, copy=copy).contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return linear


def _kernel_makers(quantization: str, device: torch.device, dtype: torch.dtype) -> Makers:
    from shoal.blocks.kernels.experts import mixture
    from shoal.blocks.kernels.linear import kernel_linear

    make = functools.partial(kernel_linear, kind=quantization, device=device, dtype=dtype)
    return Makers(
        plain=make,
        partial=functools.partial(make, partials=True),
        gated=lambda weight, bias, activation: make(weight, bias, gated=activation),
        mixture=functools.partial(mixture, kind=quantization, device=device, dtype=dtype),
    )
