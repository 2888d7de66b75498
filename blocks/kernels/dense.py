"""Owns a matrix in 16 bits, as a module's parameter; must not know who multiplies with it."""

from __future__ import annotations

import torch
from shoal.blocks.kernels.skinny import Operands
from shoal.blocks.kernels.variants import DENSE
from torch import nn


class DenseMatrix(nn.Module):
    """`weight [N, K]` on `device` in `dtype`."""

    def __init__(self, weight: torch.Tensor, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight.detach().to(device, dtype).contiguous(), requires_grad=False)

    def operands(self) -> Operands:
        """The parameter as the kernels read it."""
        return Operands(DENSE, self.out_features, self.in_features, self.weight)
