"""Owns a matrix in bitsandbytes' NF4 or FP4 data, as a module's buffers; must not know who multiplies with it.

Blocks of 64 weights share a scale, and NF4's scales are quantized as well (QLoRA, arXiv 2305.14314).
"""

from __future__ import annotations

import torch
from shoal.blocks.kernels.skinny import Operands
from shoal.blocks.kernels.variants import FOUR_BIT
from torch import nn

_BLOCK = 64


class FourBitMatrix(nn.Module):
    """`weight [N, K]` in four bits of `code` ("nf4", "fp4"), quantized on `device` from its values in `dtype`."""

    packed: torch.Tensor
    scales: torch.Tensor
    code: torch.Tensor
    inner: torch.Tensor | None
    outer: torch.Tensor | None
    offset: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, code: str, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        from bitsandbytes import functional

        self.out_features, self.in_features = weight.shape
        values = weight.detach().to(device, dtype).contiguous()
        packed, state = functional.quantize_4bit(
            values, blocksize=_BLOCK, compress_statistics=code == "nf4", quant_type=code
        )
        self.register_buffer("packed", packed.flatten())
        self.register_buffer("scales", state.absmax.contiguous())
        self.register_buffer("code", state.code.float().contiguous())
        nested = state.state2 if state.nested else None
        self.register_buffer("inner", None if nested is None else nested.code.float().contiguous())
        self.register_buffer("outer", None if nested is None else nested.absmax.float().contiguous())
        self.register_buffer("offset", None if nested is None else state.offset.float().reshape(1))

    def operands(self) -> Operands:
        """The buffers as the kernels read them."""
        return Operands(
            FOUR_BIT, self.out_features, self.in_features,
            self.packed, self.scales, self.code, self.inner, self.outer, self.offset,
        )  # fmt: skip
