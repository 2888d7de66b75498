"""Owns a matrix in bitsandbytes' NF4 or FP4 data, as a module's buffers; must not know who multiplies with it.

Blocks of 64 weights share a scale, and NF4's scales are quantized as well (QLoRA, arXiv 2305.14314).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from shoal.blocks.kernels.skinny import Operands
from shoal.blocks.kernels.variants import FOUR_BIT
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable

_BLOCK = 64
_SCALES = 256  # that share a scale of their own under double quantization


class FourBitMatrix(nn.Module):
    """`pieces` `[N, K]` one below the other in four bits of `code` ("nf4", "fp4"), quantized on `device` from their
    values in `dtype`, one after the other."""

    packed: torch.Tensor
    scales: torch.Tensor
    code: torch.Tensor
    inner: torch.Tensor | None
    outer: torch.Tensor | None
    offset: torch.Tensor | None

    def __init__(self, pieces: Iterable[torch.Tensor], code: str, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        from bitsandbytes import functional

        self.out_features, self.in_features, packed, scales, code_table = 0, 0, [], [], torch.empty(0)
        for piece in pieces:
            values = piece.detach().to(device, dtype).contiguous()
            codes, state = functional.quantize_4bit(values, blocksize=_BLOCK, quant_type=code)
            packed.append(codes.flatten())
            scales.append(state.absmax)
            code_table = state.code
            self.out_features, self.in_features = self.out_features + piece.shape[0], piece.shape[1]
        self.register_buffer("packed", torch.cat(packed))
        self.register_buffer("code", code_table.float().contiguous())
        self._keep_scales(torch.cat(scales), nested=code == "nf4")

    def _keep_scales(self, scales: torch.Tensor, *, nested: bool) -> None:
        """As they are, or quantized themselves, as bitsandbytes does it."""
        from bitsandbytes import functional

        inner = outer = offset = None
        if nested:
            mean = scales.mean()
            scales, state = functional.quantize_blockwise(scales - mean, blocksize=_SCALES)
            inner, outer, offset = state.code.float().contiguous(), state.absmax.float(), mean.float().reshape(1)
        self.register_buffer("scales", scales.contiguous())
        self.register_buffer("inner", inner)
        self.register_buffer("outer", outer)
        self.register_buffer("offset", offset)

    def operands(self) -> Operands:
        """The buffers as the kernels read them."""
        return Operands(
            FOUR_BIT, self.out_features, self.in_features,
            self.packed, self.scales, self.code, self.inner, self.outer, self.offset,
        )  # fmt: skip
