"""Owns a mixture's experts on a GPU, in our own kernels; must not know routers, families or checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from shoal.blocks.fused import gate
from shoal.blocks.kernels import grouped
from shoal.blocks.kernels.matrices import Matrix, matrix_of
from shoal.blocks.quantize_experts import activation_of, is_fused, matrices_of
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

GATES = ("silu", "gelu_tanh", "gelu")


def fits(experts: nn.Module) -> bool:
    """Whether `KernelExperts` computes what a module of transformers does."""
    if not is_fused(experts):
        return False
    kept: Any = experts
    widths = [part.shape[1 if kept.is_transposed else 2] for part in (kept.gate_up_proj, kept.down_proj)]
    return all(width % grouped.BLOCK == 0 for width in widths)


class KernelExperts(nn.Module):
    """In place of a fused experts module of transformers, from which it takes the activation between the matrices.

    All experts' matrices lie in one, an expert's rows below the other's, quantized one expert at a time.
    """

    up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None

    def __init__(self, experts: nn.Module, kind: str, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.up, up_bias = _stacked(experts, "gate_up_proj", kind, device, dtype)
        self.down, down_bias = _stacked(experts, "down_proj", kind, device, dtype)
        self.register_buffer("up_bias", up_bias)
        self.register_buffer("down_bias", down_bias)
        self.experts = len(experts.down_proj)  # type: ignore[arg-type]
        self._activate = activation_of(experts)
        self._gated = _name_of(self._activate)

    def forward(self, hidden: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Sum over each token's experts: hidden [tokens, hidden], indices and weights [tokens, experts a token]."""
        if not len(hidden):
            return torch.empty_like(hidden)
        pairs = grouped.sort_pairs(indices, self.experts)
        inner = grouped.product(self.up.operands(), self.up_bias, hidden, pairs, gated=self._gated)
        inner = inner if self._gated else self._activate(inner)
        parts = grouped.product(self.down.operands(), self.down_bias, inner, pairs, shares=weights.float())
        return parts.sum(0).to(hidden.dtype)


def _name_of(activate: Callable[[torch.Tensor], torch.Tensor]) -> str | None:
    """What kernels call it, if they know it: tried, not read off its name."""
    shown = torch.linspace(-4, 4, 66)[None]
    return next((name for name in GATES if torch.allclose(gate(shown, name), activate(shown))), None)


class Mixture(nn.Module):
    """A router and its experts as transformers wrote them, but for the experts."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`hidden [T, H]` through each token's experts: `[T, H]`."""
        out = self.mlp(hidden[None])
        state: torch.Tensor = out[0] if isinstance(out, tuple) else out  # some tell how they chose as well
        return state.view(hidden.shape)


def mixture(mlp: Any, kind: str, device: torch.device, dtype: torch.dtype) -> Mixture:
    """Of transformers' module, which has a router and `experts` for which `fits` holds; it is changed."""
    made = KernelExperts(mlp.experts, kind, device, dtype)
    mlp.experts = None  # theirs is taken, and ours keeps scales of 32 bits
    mlp.to(device, dtype)
    mlp.experts = made
    return Mixture(mlp)


def _stacked(
    experts: nn.Module, name: str, kind: str, device: torch.device, dtype: torch.dtype
) -> tuple[Matrix, torch.Tensor | None]:
    pairs = list(matrices_of(experts, name))
    weights = [weight for weight, _ in pairs]
    # What is not quantized goes as a whole: piece by piece, it would be there twice.
    matrix = matrix_of([torch.cat(weights)] if kind == "none" else weights, kind, device, dtype)
    biases = [bias for _, bias in pairs if bias is not None]
    return matrix, torch.cat(biases).to(device, dtype) if biases else None
