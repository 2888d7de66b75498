"""Owns the norm before the head for families of Llama's kind, so that a client need not import all modeling code.

transformers' modeling modules cost a client that computes no block most of its start. Of its norm classes those named
in PLAIN compute the same, operation by operation; tests hold them against it, bit by bit.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

PLAIN: Final = frozenset({
    "LlamaRMSNorm", "MistralRMSNorm", "MixtralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "Qwen3MoeRMSNorm",
    "Phi3RMSNorm", "GlmRMSNorm", "Glm4RMSNorm", "GraniteRMSNorm",
})  # fmt: skip


class RootMeanSquareNorm(nn.Module):
    """`weight * x / rms(x)` over the last axis (Zhang and Sennrich 2019); the mean in float32, the product in x's."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[..., width]` to the same."""
        wide = hidden.to(torch.float32)
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        normed: torch.Tensor = self.weight * scaled.to(hidden.dtype)
        return normed
