"""The norms at a client's ends, each computed in the order of its family's own: knows no checkpoint and no blocks.

Written out here because importing a family's modeling code takes seconds, too much for one small class.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import nn


class Norm(Enum):
    """LAYER has a bias (Ba et al., 2016, arXiv:1607.06450), the others do without a mean (Zhang and Sennrich, 2019,
    arXiv:1910.07467): RMS weights what was rounded to the model's dtype, RMS_WIDE weights in float32 and rounds then,
    RMS_PLUS_ONE does that with a weight that is stored less one."""

    LAYER = "layer"
    RMS = "rms"
    RMS_WIDE = "rms wide"
    RMS_PLUS_ONE = "rms plus one"

    def build(self, width: int, eps: float | None, *, weighted: bool = True) -> nn.Module:
        """For hidden states `[..., width]`; `eps` None: torch's default; `weighted`: only a LAYER may be without."""
        if self is not Norm.LAYER:
            return _RMSNorm(self, width, 1e-6 if eps is None else eps)
        return nn.LayerNorm(width, 1e-5 if eps is None else eps, elementwise_affine=weighted)


class _RMSNorm(nn.Module):
    weight: nn.Parameter

    def __init__(self, kind: Norm, width: int, eps: float) -> None:
        super().__init__()
        self._kind, self._eps = kind, eps
        self.weight = nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.dtype == torch.float32 and self._kind is not Norm.RMS_PLUS_ONE:
            found: torch.Tensor = torch.rms_norm(hidden, self.weight.shape, self.weight, self._eps)
            return found
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._eps)
        if self._kind is Norm.RMS:
            return self.weight * wide.to(hidden.dtype)
        weight = 1.0 + self.weight.float() if self._kind is Norm.RMS_PLUS_ONE else self.weight
        return (weight * wide).to(hidden.dtype)
