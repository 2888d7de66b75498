"""Owns how a checkpoint's tensors become a block's parameters; must not know devices, quantization or attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from shoal.blocks.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shoal.blocks.families import Family, Fused
    from torch import nn


class Tensors(Protocol):
    """What weights are read from: a checkpoint."""

    def tensor_names(self) -> frozenset[str]: ...

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]: ...


def load_block_(block: nn.Module, checkpoint: Tensors, family: Family, index: int) -> None:
    """Give a block on the meta device the tensors of block `index`, and nothing else, in the checkpoint's dtype.

    Raises CheckpointError if the checkpoint lacks one or holds it in another shape.
    """
    names = checkpoint.tensor_names()
    prefix = family.block_prefix(names, index)
    stored = {local_name(family, name.removeprefix(prefix)): name for name in family.block_tensors(names, index)}
    wanted = [name for name, _ in block.named_parameters()]
    direct = {name: stored[name] for name in wanted if name in stored}
    tensors = dict(zip(direct, _read(checkpoint, direct.values()), strict=True))
    lacking = [name for name in wanted if name not in tensors]
    tensors |= {name: _unpack(checkpoint, name, stored) for name in lacking if f"{name}_blocks" in stored}
    tensors |= {fused.target: _stack(checkpoint, fused, stored) for fused in family.fused if fused.target in lacking}
    _assign(block, tensors, f"block {index}")


def local_name(family: Family, name: str) -> str:
    """A tensor's name inside its block as transformers calls it today; checkpoints may use an older one."""
    for old, new in family.renamed:
        name = name.replace(old, new)
    return name


def _read(checkpoint: Tensors, names: Iterable[str]) -> list[torch.Tensor]:
    listed = list(names)
    found = checkpoint.read(listed)
    return [found[name] for name in listed]


def _unpack(checkpoint: Tensors, name: str, stored: Mapping[str, str]) -> torch.Tensor:
    """A tensor stored in MXFP4 (OCP Microscaling Formats 1.0), as gpt-oss's experts are: in bfloat16."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    packed = [stored.get(f"{name}_{part}") for part in ("blocks", "scales")]
    if None in packed:
        raise CheckpointError(f"The checkpoint lacks the scales of {name}: it is not complete.")
    out: torch.Tensor = convert_moe_packed_tensors(*_read(checkpoint, [str(part) for part in packed]))
    return out


def _stack(checkpoint: Tensors, fused: Fused, stored: Mapping[str, str]) -> torch.Tensor:
    """One expert after the other, so that no more than one is held beside the result."""
    count = sum(fused.sources[0].format(index) in stored for index in range(len(stored)))
    if not count or any(source.format(index) not in stored for source in fused.sources for index in range(count)):
        raise CheckpointError(f"The checkpoint lacks tensors that {fused.target} is made of: it is not complete.")
    first = _expert(checkpoint, fused, stored, 0)
    out = first.new_empty((count, *first.shape))
    for index in range(count):
        out[index] = first if index == 0 else _expert(checkpoint, fused, stored, index)
    return out


def _expert(checkpoint: Tensors, fused: Fused, stored: Mapping[str, str], index: int) -> torch.Tensor:
    return torch.cat(_read(checkpoint, [stored[source.format(index)] for source in fused.sources]))


def _assign(module: nn.Module, tensors: Mapping[str, torch.Tensor], what: str) -> None:
    try:
        module.load_state_dict(dict(tensors), strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"The checkpoint's tensors of {what} have other shapes than its config says.") from error
    missing = [name for name, held in (*module.named_parameters(), *module.named_buffers()) if held.is_meta]
    if missing:
        raise CheckpointError(f"The checkpoint lacks tensors of {what}: {', '.join(missing[:3])}.")
