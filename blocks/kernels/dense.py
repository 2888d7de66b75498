"""Owns a matrix in 16 bits, as a module's parameter; must not know who multiplies with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from shoal.blocks.kernels.skinny import Operands
from shoal.blocks.kernels.variants import DENSE
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable


class DenseMatrix(nn.Module):
    """`pieces` `[N, K]` one below the other on `device` in `dtype`."""

    def __init__(self, pieces: Iterable[torch.Tensor], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        made = [piece.detach().to(device, dtype) for piece in pieces]
        weight = made[0].contiguous() if len(made) == 1 else torch.cat(made)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.out_features, self.in_features = weight.shape

    def operands(self) -> Operands:
        """The parameter as the kernels read it."""
        return Operands(DENSE, self.out_features, self.in_features, self.weight)
