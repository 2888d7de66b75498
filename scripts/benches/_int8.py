"""Plain int8 products, to measure against LLM.int8(): both sides quantized, section 2 of arXiv 2208.07339.

The integers are exact in float32 (255 levels), so the product of the rounded numbers is the integer product up to the
rounding of sums; speed is not what is measured here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

LEVELS = 127  # of each sign


def by_tensor(x: torch.Tensor) -> torch.Tensor:
    """One scale: the largest magnitude of the whole tensor."""
    return _absmax(x, x.abs().amax())


def by_row(x: torch.Tensor) -> torch.Tensor:
    """A scale for each row: a token of the activations, an output feature of the weights [out, in]."""
    return _absmax(x, x.abs().amax(-1, keepdim=True))


def by_zeropoint(x: torch.Tensor) -> torch.Tensor:
    """One scale and one offset, so that smallest and largest value take the ends of the 256 levels."""
    low, high = torch.aminmax(x)
    step = ((high - low) / 255).clamp_min(torch.finfo(x.dtype).tiny)
    zero = (-low / step).round()
    return (((x / step).round() + zero).clamp(0, 255) - zero) * step


def _absmax(x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    step = (largest / LEVELS).clamp_min(torch.finfo(x.dtype).tiny)
    return (x / step).round() * step


@dataclass(frozen=True)
class Scheme:
    """How activations and weights are rounded, and how many 4-byte constants a matrix, or each row of it, keeps."""

    activations: Callable[[torch.Tensor], torch.Tensor]
    weights: Callable[[torch.Tensor], torch.Tensor]
    constants: int = 1
    each_row: bool = False

    def stored_bytes(self, weight: torch.Tensor) -> int:
        return weight.numel() + 4 * self.constants * (weight.shape[0] if self.each_row else 1)


SCHEMES = {
    "int8_tensor": Scheme(by_tensor, by_tensor),
    "int8_row": Scheme(by_row, by_tensor),
    "int8_vector": Scheme(by_row, by_row, each_row=True),
    "int8_zeropoint": Scheme(by_zeropoint, by_zeropoint, constants=2),
}


class RoundedLinear(nn.Module):
    """A linear map whose weights [out, in] and inputs are rounded to 8 bits."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, scheme: Scheme) -> None:
        super().__init__()
        self.weight = nn.Parameter(scheme.weights(weight.detach()), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._round = scheme.activations
        self.stored_bytes = scheme.stored_bytes(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self._round(x), self.weight, self.bias)
