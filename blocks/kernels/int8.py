"""Owns a matrix in bitsandbytes' int8 data, as a module's buffers; must not know who multiplies with it.

Rows of int8 with one scale each, as in LLM.int8() (arXiv 2208.07339), but activations keep their 16 bits: that is more
exact than rounding them to int8, costs nothing where reading the weights is the limit, and makes a token's result
independent of the tokens beside it.
"""

from __future__ import annotations

import torch
from shoal.blocks.kernels.skinny import Operands
from shoal.blocks.kernels.variants import INT8
from torch import nn


class Int8Matrix(nn.Module):
    """`weight [N, K]` as int8 rows with one float32 scale each, quantized on `device` through float16."""

    codes: torch.Tensor
    scales: torch.Tensor

    def __init__(self, weight: torch.Tensor, device: torch.device) -> None:
        super().__init__()
        from bitsandbytes import functional

        self.out_features, self.in_features = weight.shape
        values = weight.detach().to(device, torch.float16).contiguous()
        codes, scales, _ = functional.int8_vectorwise_quant(values)
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scales", scales.float().contiguous())

    def operands(self) -> Operands:
        """The buffers as the kernels read them."""
        return Operands(INT8, self.out_features, self.in_features, self.codes, self.scales)
