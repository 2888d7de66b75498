"""Owns the modules of a span, built from transformers' classes and a checkpoint; must not know batches or KV."""

from __future__ import annotations

import copy
import functools
import importlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from shoal.blocks.attention import IMPLEMENTATION
from shoal.blocks.cpu.short import fits, short_library
from shoal.blocks.fused import FusedBlock
from shoal.blocks.kernels import has_kernels
from shoal.blocks.makers import makers_for
from shoal.blocks.offload import Streamed, spread
from shoal.blocks.own_attention import Bias
from shoal.blocks.packed import pack_
from shoal.blocks.rotary import Rotary
from shoal.blocks.structure import probe, structure_of
from shoal.blocks.weights import Tensors, load_block_

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from shoal.blocks.families import Family
    from shoal.blocks.spec import ModelSpec
    from shoal.blocks.structure import Attention
    from torch import nn


@dataclass(frozen=True)
class Placement:
    """How blocks are held: `quantization` is one of blocks.choices.QUANTIZATIONS; `fused`: in our own layer where it
    computes what the block computes; `host_blocks` of them stay in host memory; `short`: on a CPU, a few tokens go
    through our own C where it can be had."""

    quantization: str
    device: torch.device
    dtype: torch.dtype
    fused: bool = True
    host_blocks: int = 0
    short: bool = False


@dataclass(frozen=True)
class Parts:
    """A span's modules: `layers` by absolute block index; `rotary` and `bias` where the family has them. `fused`: all
    layers are our own; `short`: what computes their short steps, on a CPU."""

    spec: ModelSpec
    layers: dict[int, nn.Module]
    rotary: Rotary | None
    bias: Bias | None
    fused: bool = False
    short: ctypes.CDLL | None = None


def library(family: Family) -> ModuleType:
    """transformers' modeling module of a family."""
    return importlib.import_module(f"transformers.models.{family.module}.modeling_{family.module}")


def load_parts(
    checkpoint: Tensors,
    spec: ModelSpec,
    blocks: range,
    placement: Placement,
    on_block: Callable[[int], None] | None = None,
) -> Parts:
    """Build and load blocks one after the other; `on_block` is told how many are done.

    Raises CheckpointError or QuantizationError.
    """
    config = copy.deepcopy(spec.config)
    config._attn_implementation = IMPLEMENTATION if spec.family.attention == "interface" else "sdpa"
    # One expert after the other reads the fewest weights, but waits for the device to learn which: not on a GPU, where
    # torch multiplies for all of them at once; but it has no such operation for Apple's.
    config._experts_implementation = "grouped_mm" if placement.device.type == "cuda" else "eager"
    rotary = _rotary(spec, config, placement.device)
    make = functools.partial(_empty, config, spec)
    # A captured graph asks for no block, and streamed blocks wait for the bus anyway: the library's layers will do.
    # Elsewhere (MPS) complex numbers, which our own layer rotates with, are not known to work.
    fuse = placement.fused and not placement.host_blocks and placement.device.type in ("cpu", "cuda")
    asked = _asked(make, spec, blocks, rotary, _has_experts(placement)) if fuse and rotary else None
    short = _short(placement, make(blocks[0]), asked) if asked else None
    layers = Streamed(placement.device, spread(blocks, placement.host_blocks))
    for index in blocks:
        block = make(index)
        load_block_(block, checkpoint, spec.family, index)
        layers[index] = _fuse(block, asked[index], placement, short) if asked else _place(block, placement)
        if on_block is not None:
            on_block(index - blocks.start + 1)
    return Parts(spec, layers, rotary, _bias(spec), asked is not None, short)


def _empty(config: Any, spec: ModelSpec, index: int) -> nn.Module:
    """A block as transformers makes it, on the meta device."""
    with torch.device("meta"):
        block: nn.Module = getattr(library(spec.family), spec.family.block)(config, layer_idx=index)
    return block


def _asked(
    make: Callable[[int], nn.Module],
    spec: ModelSpec,
    blocks: range,
    rotary: Rotary,
    has_experts: Callable[[nn.Module], bool],
) -> dict[int, Attention] | None:
    """What each block asks of attention, if our own layer computes what all of these blocks do."""
    asked = {index: probe(make(index), rotary.width, library(spec.family), has_experts) for index in blocks}
    known = {index: attention for index, attention in asked.items() if attention is not None}
    return known if len(known) == len(blocks) else None


def _has_experts(placement: Placement) -> Callable[[nn.Module], bool]:
    """Whether our own layer computes what a module of experts does: on a GPU, where it is captured with the rest."""
    if not has_kernels(placement.device, placement.dtype):
        return lambda _: False
    from shoal.blocks.kernels import experts

    return experts.fits


def _sums(block: Any, asked: dict[int, Attention]) -> Iterator[int]:
    """Over how many numbers fused blocks sum: the columns of their matrices, and what attention asks of a head."""
    yield from (block.self_attn.config.hidden_size, block.mlp.down_proj.in_features)
    yield from (each.head_dim for each in asked.values())
    yield from (each.heads * each.head_dim for each in asked.values())


def _short(placement: Placement, block: nn.Module, asked: dict[int, Attention]) -> ctypes.CDLL | None:
    """What computes short steps of fused blocks on a CPU, their matrices being as torch keeps them."""
    if not placement.short or placement.device.type != "cpu" or placement.quantization != "none":
        return None
    found = short_library(placement.dtype)
    return found if found is not None and fits(found, set(_sums(block, asked))) else None


def _fuse(block: nn.Module, attention: Attention, placement: Placement, short: ctypes.CDLL | None) -> nn.Module:
    makers = makers_for(placement.quantization, placement.device, placement.dtype, short)
    fused = FusedBlock(structure_of(block, attention), makers, placement.device, placement.dtype)
    return fused.eval().requires_grad_(requires_grad=False)


def _place(block: nn.Module, placement: Placement) -> nn.Module:
    if placement.quantization != "none":
        from shoal.blocks.quantize import quantize_

        quantize_(block, placement.quantization, placement.device, placement.dtype)
    else:
        block.to(device=placement.device, dtype=placement.dtype)
        pack_(block)
    return block.eval().requires_grad_(requires_grad=False)


def _rotary(spec: ModelSpec, config: Any, device: torch.device) -> Rotary | None:
    if spec.family.rotary is None:
        return None
    module = getattr(library(spec.family), spec.family.rotary)(config).to(device)
    types = tuple(dict.fromkeys(spec.layer_types)) if spec.family.rotary_per_layer_type else ()
    return Rotary(module, types)


def _bias(spec: ModelSpec) -> Bias | None:
    """BLOOM always has ALiBi; Falcon's config says whether it does."""
    family = spec.family
    if family.alibi is None or not getattr(spec.config, "alibi", True):
        return None
    divisor = math.sqrt(spec.head_dim[0]) if family.alibi_in_mask else None
    return Bias(getattr(library(family), family.alibi), int(spec.config.num_attention_heads), divisor)
