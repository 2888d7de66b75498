"""Owns a matrix in bitsandbytes' int8 data, as a module's buffers; must not know who multiplies with it.

Rows of int8 with one scale each, as in LLM.int8() (arXiv 2208.07339), but activations keep their 16 bits: that is more
exact than rounding them to int8, costs nothing where reading the weights is the limit, and makes a token's result
independent of the tokens beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from shoal.blocks.kernels.skinny import Operands
from shoal.blocks.kernels.variants import INT8
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable


class Int8Matrix(nn.Module):
    """`pieces` `[N, K]` one below the other as int8 rows with one float32 scale each, quantized on `device` through
    float16, one after the other."""

    codes: torch.Tensor
    scales: torch.Tensor

    def __init__(self, pieces: Iterable[torch.Tensor], device: torch.device) -> None:
        super().__init__()
        from bitsandbytes import functional

        made = [functional.int8_vectorwise_quant(one.detach().to(device, torch.float16).contiguous()) for one in pieces]
        self.register_buffer("codes", torch.cat([codes for codes, _, _ in made]))
        self.register_buffer("scales", torch.cat([scales.float() for _, scales, _ in made]))
        self.out_features, self.in_features = self.codes.shape

    def operands(self) -> Operands:
        """The buffers as the kernels read them."""
        return Operands(INT8, self.out_features, self.in_features, self.codes, self.scales)
