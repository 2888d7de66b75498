"""Owns the forward of fused blocks through our own kernels on a GPU; must not know families, checkpoints or graphs.

The residual stream is kept in 32 bits for the whole span. Nothing here waits for the device or decides by its numbers,
so that a forward over decode rows can be captured in a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from shoal.blocks.fused import FusedBlock, gate
from shoal.blocks.kernels.decode import decode_attention
from shoal.blocks.kernels.linear import KernelLinear
from shoal.blocks.kernels.norm import add_norm
from shoal.blocks.kernels.prefill import prefill_attention
from shoal.blocks.kernels.rope import HeadShape, cos_sin, rope_and_store
from shoal.blocks.kernels.skinny import Arranged

if TYPE_CHECKING:
    from shoal.blocks.kernels.prefill import PrefillTiles
    from shoal.blocks.kernels.skinny import Order
    from shoal.blocks.kv import BlockKV, KVPool
    from shoal.blocks.parts import Parts
    from shoal.blocks.rotary import Rotary
    from shoal.blocks.structure import RMSNorm
    from torch import nn

Turns = dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Decodes:
    """Rows of one token: `table [B, pages]`, `ends [B]` tokens seen by each (0: padding), KV in `splits` parts."""

    table: torch.Tensor
    ends: torch.Tensor
    splits: int


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a forward needs besides hidden states, on the device: `positions` and `slots [T]` of all tokens, rotations
    that depend on more than the position, and how tokens attend: the first of them as decodes, the rest in `tiles`."""

    positions: torch.Tensor
    slots: torch.Tensor
    turns: Turns
    decodes: Decodes | None
    tiles: PrefillTiles | None


class FusedSpan:
    """The layers of a span whose parts are all fused, over `kv`."""

    def __init__(self, parts: Parts, kv: KVPool) -> None:
        self.kv, self.dtype = kv, kv.dtype
        self._types = parts.spec.layer_types
        self._rotary: Rotary | None = parts.rotary
        self._blocks = {index: layer for index, layer in parts.layers.items() if isinstance(layer, FusedBlock)}
        self.starts_early = any(
            isinstance(block.qkv, KernelLinear) and block.qkv.starts_early for block in self._blocks.values()
        )
        self._shapes = {index: _head_shape(block) for index, block in self._blocks.items()}

    @property
    def kv_heads(self) -> int:
        """KV heads of a block: what a GPU's work is split by."""
        return next(iter(self._shapes.values())).kv_heads

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        shape = next(iter(self._shapes.values()))
        return shape.heads // shape.kv_heads

    def forward(self, hidden: torch.Tensor, run: range, inputs: Inputs) -> torch.Tensor:
        """Hidden states `[T, H]` through the blocks of `run`, in the span's dtype."""
        residual = torch.empty(hidden.shape, dtype=torch.float32, device=hidden.device)
        turns = self._turns(inputs)
        delta, post, scale = hidden, None, 1.0
        for index in run:
            block = self._blocks[index]
            before, after, before_mlp, after_mlp = block.norms
            fresh = index == run.start
            state = self._normed(residual, delta, before, post, scale, block.qkv, fresh=fresh)
            turn = turns[""] if "" in turns else turns[self._types[index]]
            seen = self._attend(index, block.qkv(state), turn, inputs)
            scale = block.residual_scale
            if block.mixture is None:
                state = self._normed(residual, block.o(seen), before_mlp, after, scale, block.gate_up)
                delta = block.down(self._gated(block, state, len(residual)))
            else:
                delta = block.mixture(self._normed(residual, block.o(seen), before_mlp, after, scale, block.mixture))
            post = after_mlp
        return add_norm(residual, delta, None, post=post, scale=scale, dtype=self.dtype, starts_early=self.starts_early)

    def _normed(
        self,
        residual: torch.Tensor,
        delta: torch.Tensor,
        norm: RMSNorm | None,
        post: RMSNorm | None,
        scale: float,
        matrix: nn.Module,
        *,
        fresh: bool = False,
    ) -> torch.Tensor | Arranged:
        """`add_norm`, in the order in which `matrix` had best read the states."""
        order = self._order(matrix, len(residual))
        state = add_norm(
            residual, delta, norm, post=post, scale=scale, dtype=self.dtype, starts_early=self.starts_early,
            order=order, fresh=fresh,
        )  # fmt: skip
        return state if order is None else Arranged(state, len(residual), order)

    def _gated(self, block: FusedBlock, state: torch.Tensor | Arranged, rows: int) -> torch.Tensor | Arranged:
        """`act(gate) * up`, in the order in which the matrix after it had best read them."""
        up = block.gate_up
        if isinstance(up, KernelLinear) and up.gives_order(rows, self.dtype):
            order = self._order(block.down, rows)
            return up(state) if order is None else up.ordered(state, order)
        inner: torch.Tensor = up(state)
        return inner if block.gated else gate(inner, block.activation)

    def _order(self, matrix: nn.Module, rows: int) -> Order | None:
        return matrix.order(rows, self.dtype) if isinstance(matrix, KernelLinear) else None

    def _turns(self, inputs: Inputs) -> Turns:
        if self._rotary is None:
            return inputs.turns
        turns = dict(inputs.turns)
        for name in self._rotary.names:
            if name not in turns and (found := self._rotary.frequencies(name)) is not None:
                turns[name] = cos_sin(inputs.positions, *found)
        return turns

    def _attend(
        self, index: int, qkv: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], inputs: Inputs
    ) -> torch.Tensor:
        block, kv, shape = self._blocks[index], self.kv.block(index), self._shapes[index]
        query = rope_and_store(
            qkv, *turn, inputs.slots, kv, shape, q_norm=block.q_norm, k_norm=block.k_norm, dtype=self.dtype,
            starts_early=self.starts_early,
        )  # fmt: skip
        n = 0 if inputs.decodes is None else len(inputs.decodes.ends)
        done = []
        if inputs.decodes is not None:
            done.append(_decode(block, query[:n], kv, inputs.decodes, starts_early=self.starts_early))
        if inputs.tiles is not None:
            done.append(_prefill(block, query[n:], kv, inputs.tiles, starts_early=self.starts_early))
        return done[0] if len(done) == 1 else torch.cat(done)


def _decode(
    block: FusedBlock, query: torch.Tensor, kv: BlockKV, decodes: Decodes, *, starts_early: bool
) -> torch.Tensor:
    return decode_attention(
        query, kv, decodes.table, decodes.ends, splits=decodes.splits, scale=block.rules.scale,
        window=block.attention.window, softcap=block.rules.softcap, sinks=block.rules.sinks,
        starts_early=starts_early,
    )  # fmt: skip


def _prefill(
    block: FusedBlock, query: torch.Tensor, kv: BlockKV, tiles: PrefillTiles, *, starts_early: bool
) -> torch.Tensor:
    return prefill_attention(
        query, kv, tiles, scale=block.rules.scale, window=block.attention.window, softcap=block.rules.softcap,
        sinks=block.rules.sinks, starts_early=starts_early,
    )  # fmt: skip


def _head_shape(block: FusedBlock) -> HeadShape:
    """A fused block's rows are ordered so that rotated pairs are neighbours, whatever its family does."""
    attention = block.attention
    return HeadShape(
        attention.heads, attention.kv_heads, attention.head_dim, attention.rotary_dim, interleaved=True
    )  # fmt: skip
