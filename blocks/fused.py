"""Owns our own layer for Llama-like blocks, in torch operations: few of them, fused matrices, paged KV.

Must not know families or checkpoints. Queries and keys are projected with each head's rows reordered so that the pairs
that rotary embeddings turn lie side by side: the rotation is then one complex product, and attention does not notice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from shoal.blocks.attention import Rules, attend
from shoal.blocks.structure import RMSNorm
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.blocks.batch import Batch
    from shoal.blocks.kv import BlockKV
    from shoal.blocks.structure import Attention, Structure

    MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], nn.Module]


@dataclass(frozen=True)
class Makers:
    """How a fused block's four matrices become modules `x [.., in] -> [.., out]`; weights are `[out, in]`.

    `gated`: takes the activation's name as well, and its module hands back `activation(gate) * up` by itself.
    `mixture`: takes transformers' module of router and experts; None: there is none for fused blocks.
    """

    plain: MakeLinear
    partial: MakeLinear
    gated: Callable[[torch.Tensor, torch.Tensor | None, str], nn.Module] | None = None
    mixture: Callable[[nn.Module], nn.Module] | None = None


class FusedBlock(nn.Module):
    """One block of `structure`, its matrices made by `makers`; norms are in `dtype` on `device`."""

    def __init__(self, structure: Structure, makers: Makers, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention, self.activation = structure.attention, structure.activation
        self.residual_scale, self.gated = structure.residual_scale, makers.gated is not None
        order = head_order(structure.attention)
        weight, bias = _stacked(structure.qkv)
        rows = torch.cat([order, torch.arange(len(order), len(weight))])
        self.qkv = makers.partial(weight[rows], None if bias is None else bias[rows])
        self.o = makers.partial(structure.o.weight.detach(), _bias(structure.o))
        self.mixture = structure.mixture and makers.mixture and makers.mixture(structure.mixture)
        if structure.down is not None:
            self.down = makers.partial(structure.down.weight.detach(), _bias(structure.down))
            up, up_bias = _stacked(structure.gate_up)
            self.gate_up = makers.gated(up, up_bias, self.activation) if makers.gated else makers.plain(up, up_bias)
        self._weights = nn.ParameterList()
        self.norms = [self._keep(norm, device, dtype) for norm in structure.norms]
        n_query = structure.attention.heads * structure.attention.head_dim
        self.q_norm = self._keep(_reordered(structure.q_norm, order[:n_query]), device, dtype)
        self.k_norm = self._keep(_reordered(structure.k_norm, order[n_query:] - n_query), device, dtype)
        sinks = structure.sinks
        if sinks is not None:
            self._weights.append(nn.Parameter(sinks.to(device, dtype), requires_grad=False))
            sinks = self._weights[-1]
        self.rules = Rules(structure.attention.scale, structure.attention.softcap, sinks)

    def _keep(self, norm: RMSNorm | None, device: torch.device, dtype: torch.dtype) -> RMSNorm | None:
        """The norm with its weight among our parameters; Gemma's weight less one is made whole, in 32 bits."""
        if norm is None:
            return None
        weight = norm.weight.float() + 1 if norm.plus_one else norm.weight.to(dtype)
        self._weights.append(nn.Parameter(weight.to(device), requires_grad=False))
        return RMSNorm(self._weights[-1], norm.eps)

    def forward(self, hidden: torch.Tensor, turn: torch.Tensor, kv: BlockKV, batch: Batch) -> torch.Tensor:
        """`hidden [T, H]` through the block, over its `kv`; `turn`: complex rotations `[T, 1, rotary / 2]`."""
        before, after, before_mlp, after_mlp = self.norms
        seen = self.o(self._attend(self.qkv(_normed(hidden, before)), turn, kv, batch))
        hidden = self._add(hidden, _normed(seen, after))
        return self._add(hidden, _normed(self._mlp(_normed(hidden, before_mlp)), after_mlp))

    def _mlp(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.mixture is not None:
            out: torch.Tensor = self.mixture(hidden)
        else:
            inner = self.gate_up(hidden)
            out = self.down(inner if self.gated else gate(inner, self.activation))
        return out

    def _attend(self, qkv: torch.Tensor, turn: torch.Tensor, kv: BlockKV, batch: Batch) -> torch.Tensor:
        shape = self.attention
        qkv = _head_normed(qkv, self)
        heads = qkv.view(len(qkv), -1, shape.head_dim)
        turned = _turn(heads[:, : shape.heads + shape.kv_heads], turn, shape.rotary_dim)
        kv.write(batch.write, turned[:, shape.heads :], heads[:, shape.heads + shape.kv_heads :])
        query = turned[:, : shape.heads].transpose(0, 1)[None]
        out = attend(query, kv, batch, shape.window, self.rules)
        return out.reshape(len(qkv), shape.heads * shape.head_dim)

    def _add(self, hidden: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        return hidden + delta if self.residual_scale == 1.0 else torch.add(hidden, delta, alpha=self.residual_scale)


def head_order(attention: Attention) -> torch.Tensor:
    """The rows of the query and key matrices, `[(heads + kv_heads) * head_dim]`, with rotated pairs side by side."""
    rotary, width = attention.rotary_dim, attention.head_dim
    pairs = torch.arange(rotary) if attention.interleaved else torch.arange(rotary).view(2, -1).T.reshape(-1)
    head = torch.cat([pairs, torch.arange(rotary, width)])
    return (torch.arange(attention.heads + attention.kv_heads)[:, None] * width + head).reshape(-1)


def gate(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """`activation(gate) * up` of `[T, 2 F]` whose first half is the gate."""
    first, up = gate_up.chunk(2, dim=-1)
    if activation == "silu":
        return functional.silu(first) * up
    return functional.gelu(first, approximate="tanh" if activation == "gelu_tanh" else "none") * up


def _normed(hidden: torch.Tensor, norm: RMSNorm | None) -> torch.Tensor:
    if norm is None:
        return hidden
    if hidden.dtype == norm.weight.dtype:
        return functional.rms_norm(hidden, (hidden.shape[-1],), norm.weight, norm.eps)
    return functional.rms_norm(hidden.float(), (hidden.shape[-1],), norm.weight.float(), norm.eps).to(hidden.dtype)


def _head_normed(qkv: torch.Tensor, block: FusedBlock) -> torch.Tensor:
    """`qkv [T, N]` with the block's norms of queries and keys, if it has them: of each head, or of all together."""
    if block.q_norm is None or block.k_norm is None:
        return qkv
    shape = block.attention
    widths = [shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.kv_heads * shape.head_dim]
    query, key, value = torch.split(qkv, widths, dim=1)
    return torch.cat([_by_head(query, block.q_norm), _by_head(key, block.k_norm), value], dim=1)


def _by_head(part: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
    return _normed(part.reshape(len(part), -1, norm.weight.numel()), norm).reshape(part.shape)


def _turn(heads: torch.Tensor, turn: torch.Tensor, rotary: int) -> torch.Tensor:
    """Rotate the first `rotary` numbers of each head `[T, heads, head_dim]`, in place where the type allows."""
    part, pairs = heads[..., :rotary], (*heads.shape[:2], rotary // 2, 2)
    if heads.dtype == torch.float32:
        torch.view_as_complex(part.view(pairs)).mul_(turn)
    else:
        turned = torch.view_as_complex(part.float().view(pairs)) * turn
        part.copy_(torch.view_as_real(turned).flatten(-2))
    return heads


def _stacked(linears: tuple[nn.Linear, ...]) -> tuple[torch.Tensor, torch.Tensor | None]:
    weight = torch.cat([linear.weight.detach() for linear in linears])
    if all(linear.bias is None for linear in linears):
        return weight, None
    biases = [
        b if (b := _bias(linear)) is not None else linear.weight.new_zeros(len(linear.weight)) for linear in linears
    ]
    return weight, torch.cat(biases)


def _bias(linear: nn.Linear) -> torch.Tensor | None:
    bias: Any = linear.bias
    return None if bias is None else bias.detach()


def _reordered(norm: RMSNorm | None, order: torch.Tensor) -> RMSNorm | None:
    """The weight in the order of the rows: that of one head where each head has the same norm."""
    return norm and RMSNorm(norm.weight[order[: norm.weight.numel()]], norm.eps, norm.plus_one)
