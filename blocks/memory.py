"""How many bytes a block takes on a device, foretold from the config; reads no weights.

Foretold from transformers' own block on the meta device rather than from the checkpoint's files: loading fills exactly
these shapes, whatever types, per-expert tensors or packings the files hold, and no shard needs to be here for it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from shoal.blocks.parts import library
from shoal.blocks.quantize import SCALES_BLOCK, check_kind, replace_matrices
from shoal.blocks.quantize_linear import FOUR_BIT_BLOCK
from torch import nn

if TYPE_CHECKING:
    from shoal.blocks.spec import ModelSpec

_CODE_BYTES = 16 * 4  # the 16 values of a four-bit code, in float32: a table for each matrix
_SCALE_CODE_BYTES = 256 * 4 + 4  # likewise for scales in a byte, and their mean, which is taken off before
_STATES = 8  # rows of hidden size beside the matrices' outputs: the residual in 32 bits, norms, attention, sums


@dataclass(frozen=True, slots=True)
class BlockShape:
    """A block's linear maps as (rows, columns), each expert's for itself; `rest` counts parameters that stay as they
    are (norms, biases, routers), `buffers` bytes. `busy`: numbers that one token's pass has in memory at most."""

    matrices: tuple[tuple[int, int], ...]
    rest: int
    buffers: int
    busy: int


def block_shapes(spec: ModelSpec) -> tuple[BlockShape, ...]:
    """The shape of each block of a model, without its weights."""
    config = copy.deepcopy(spec.config)
    config._attn_implementation = "sdpa"
    return tuple(_shape(spec, config, index) for index in range(spec.n_blocks))


def block_bytes(shape: BlockShape, quantization: str, dtype: torch.dtype) -> int:
    """Bytes of a loaded block; raises QuantizationError for an unknown kind."""
    check_kind(quantization)
    matrices = sum(_matrix_bytes(rows, columns, quantization, dtype) for rows, columns in shape.matrices)
    return matrices + shape.rest * dtype.itemsize + shape.buffers


def workspace_bytes(shape: BlockShape, quantization: str, dtype: torch.dtype, tokens: int) -> int:
    """Bytes that a forward of `tokens` tokens needs beside weights and KV: activations, and one matrix in `dtype`
    where a quantized one is unfolded for many rows. An upper estimate: allocators keep what they gave out."""
    largest = max((rows * columns for rows, columns in shape.matrices), default=0)
    return (tokens * shape.busy + (largest if quantization != "none" else 0)) * dtype.itemsize


def _shape(spec: ModelSpec, config: Any, index: int) -> BlockShape:
    with torch.device("meta"):
        block = getattr(library(spec.family), spec.family.block)(config, layer_idx=index)
    matrices: list[tuple[int, int]] = []
    biases = 0

    def count(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
        nonlocal biases
        matrices.append((weight.shape[0], weight.shape[1]))
        biases += 0 if bias is None else bias.numel()
        return nn.Identity()

    busy = _busy_rows(block, config) + _STATES * spec.hidden_size
    replace_matrices(block, count)
    rest = biases + sum(parameter.numel() for parameter in block.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in block.buffers())
    return BlockShape(tuple(matrices), rest, buffers, busy)


def _busy_rows(block: nn.Module, config: Any) -> int:
    """Rows of all matrices, of a mixture's only those of the experts that a token is sent to."""
    chosen = int(getattr(config, "num_experts_per_tok", None) or 1)
    rows = 0
    for parameter in block.parameters():
        if parameter.dim() == 3:
            rows += chosen * (parameter.shape[1] + parameter.shape[2])
        elif parameter.dim() == 2:
            rows += max(parameter.shape)
    return rows


def _matrix_bytes(rows: int, columns: int, kind: str, dtype: torch.dtype) -> int:
    """As bitsandbytes stores it: int8 with a float32 scale a row; four bits in whole blocks of weights with a scale a
    block, in float32 or, under double quantization, in a byte with a float32 scale a block of scales."""
    count = rows * columns
    if kind == "none":
        return count * dtype.itemsize
    if kind == "int8":
        return count + 4 * rows
    scales = -(-count // FOUR_BIT_BLOCK)
    packed = scales * FOUR_BIT_BLOCK // 2 + _CODE_BYTES
    return packed + (scales + 4 * -(-scales // SCALES_BLOCK) + _SCALE_CODE_BYTES if kind == "nf4" else 4 * scales)
