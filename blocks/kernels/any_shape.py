"""Owns the matrices of transformers' layers on a GPU, in our own kernels; must not know what those layers compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.blocks.kernels import experts
from shoal.blocks.kernels.experts import KernelExperts
from shoal.blocks.kernels.linear import KernelLinear, kernel_linear
from torch import nn

if TYPE_CHECKING:
    import torch


class AnyShape(nn.Module):
    """`x [..., K] -> [..., N]` in x's dtype, by a `KernelLinear`, which takes rows in `dtype`."""

    def __init__(self, linear: KernelLinear, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear, self.dtype = linear, dtype

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`hidden @ weight.T + bias`."""
        rows = hidden.reshape(-1, hidden.shape[-1]).to(self.dtype)
        out: torch.Tensor = self.linear(rows)
        return out.view(*hidden.shape[:-1], out.shape[-1]).to(hidden.dtype)


class Kernels:
    """Makes what stands in place of the linear maps of a block, in `kind`, one of blocks.choices.QUANTIZATIONS."""

    def __init__(self, kind: str, device: torch.device, dtype: torch.dtype) -> None:
        self._kind, self._device, self._dtype = kind, device, dtype

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
        """Of `weight` [out, in] and `bias` [out]."""
        return AnyShape(kernel_linear(weight, bias, self._kind, self._device, self._dtype), self._dtype)

    def experts(self, module: nn.Module) -> nn.Module | None:
        """Of a fused experts module; None if our kernels do not do it."""
        if not experts.fits(module):
            return None
        return KernelExperts(module, self._kind, self._device, self._dtype)
