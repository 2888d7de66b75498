"""Owns the modules of a span, built from transformers' classes and a checkpoint; must not know batches or KV."""

from __future__ import annotations

import copy
import importlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from shoal.blocks.attention import IMPLEMENTATION
from shoal.blocks.own_attention import Bias
from shoal.blocks.packed import pack_
from shoal.blocks.rotary import Rotary
from shoal.blocks.weights import Tensors, load_block_

if TYPE_CHECKING:
    from types import ModuleType

    from shoal.blocks.families import Family
    from shoal.blocks.spec import ModelSpec
    from torch import nn


@dataclass(frozen=True)
class Placement:
    """How blocks are held: `quantization` is one of blocks.choices.QUANTIZATIONS."""

    quantization: str
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class Parts:
    """A span's modules: `layers` by absolute block index; `rotary` and `bias` where the family has them."""

    spec: ModelSpec
    layers: dict[int, nn.Module]
    rotary: Rotary | None
    bias: Bias | None


def library(family: Family) -> ModuleType:
    """transformers' modeling module of a family."""
    return importlib.import_module(f"transformers.models.{family.module}.modeling_{family.module}")


def load_parts(checkpoint: Tensors, spec: ModelSpec, blocks: range, placement: Placement) -> Parts:
    """Build and load blocks one after the other. Raises CheckpointError or QuantizationError."""
    config = copy.deepcopy(spec.config)
    config._attn_implementation = IMPLEMENTATION if spec.family.attention == "interface" else "sdpa"
    # One expert after the other reads the fewest weights, but waits for the device to learn which: not on a GPU.
    config._experts_implementation = "eager" if placement.device.type == "cpu" else "grouped_mm"
    layers = {}
    for index in blocks:
        with torch.device("meta"):
            block = getattr(library(spec.family), spec.family.block)(config, layer_idx=index)
        load_block_(block, checkpoint, spec.family, index)
        layers[index] = _place(block, placement)
    return Parts(spec, layers, _rotary(spec, config, placement.device), _bias(spec))


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
