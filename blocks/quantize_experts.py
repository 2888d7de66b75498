"""A mixture's experts, quantized matrix by matrix; knows no routers, kinds or checkpoints.

transformers keeps a block's experts as three-dimensional parameters in one module, which bitsandbytes cannot quantize.
Here each expert is a pair of two-dimensional modules, called for the tokens that were routed to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable

MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], nn.Module]  # weight [out, in], bias [out]


def is_fused(module: nn.Module) -> bool:
    """Whether the module holds all experts' matrices in 3-D parameters, in a form that `QuantizedExperts` computes."""
    up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    return (
        isinstance(up, nn.Parameter)
        and isinstance(down, nn.Parameter)
        and up.dim() == down.dim() == 3
        and bool(getattr(module, "has_gate", False))
        and not getattr(module, "has_post_expert_norm", False)
    )


class QuantizedExperts(nn.Module):
    """In place of a fused experts module of transformers, from which it takes the activation between the matrices."""

    def __init__(self, experts: nn.Module, make_linear: MakeLinear) -> None:
        super().__init__()
        self.gate_up = nn.ModuleList(make_linear(*pair) for pair in matrices_of(experts, "gate_up_proj"))
        self.down = nn.ModuleList(make_linear(*pair) for pair in matrices_of(experts, "down_proj"))
        self._activate = activation_of(experts)

    def forward(self, hidden: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Sum over each token's experts: hidden [tokens, hidden], indices and weights [tokens, experts a token]."""
        result = torch.zeros_like(hidden)
        for expert in torch.unique(indices).tolist():
            if expert < len(self.down):  # one past the last stands for "no expert"
                token, place = torch.where(indices == expert)
                out = self.down[expert](self._activate(self.gate_up[expert](hidden[token])))
                result.index_add_(0, token, (out * weights[token, place, None]).to(result.dtype))
        return result


def activation_of(experts: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """What is between an expert's matrices: its weights, which have been taken, are let go."""
    for name in [name for name, _ in experts.named_parameters(recurse=False)]:
        delattr(experts, name)
    activate: Callable[[torch.Tensor], torch.Tensor] = experts._apply_gate  # type: ignore[assignment]
    return activate


def matrices_of(experts: Any, name: str) -> Iterable[tuple[torch.Tensor, torch.Tensor | None]]:
    """Weight [out, in] and bias [out], if there is one, of each expert's `gate_up_proj` or `down_proj`."""
    weights = getattr(experts, name).detach()
    biases = getattr(experts, f"{name}_bias").detach() if experts.has_bias else [None] * len(weights)
    for weight, bias in zip(weights, biases, strict=True):
        yield (weight.T if experts.is_transposed else weight), bias
