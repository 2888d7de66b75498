"""Owns how a checkpoint's tensors become parameters; must not know devices, quantization or attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from shoal.blocks.errors import CheckpointError, StoredOtherwise

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shoal.blocks.families import Family, Fused
    from torch import nn


_READ = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Tensors(Protocol):
    """What weights are read from: a checkpoint."""

    def tensor_names(self) -> frozenset[str]: ...

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]: ...


def load_block_(block: nn.Module, checkpoint: Tensors, family: Family, index: int) -> None:
    """Give a block on the meta device the tensors of block `index`, and nothing else, in the checkpoint's dtype.

    Raises CheckpointError if the checkpoint lacks one or holds it in another shape, StoredOtherwise if its numbers
    are not those of the weight itself.
    """
    names = checkpoint.tensor_names()
    prefix = family.block_prefix(names, index)
    stored = {local_name(family, name.removeprefix(prefix)): name for name in family.block_tensors(names, index)}
    wanted = [name for name, _ in block.named_parameters()]
    direct = {name: stored[name] for name in wanted if name in stored}
    found = read_weights(checkpoint, direct.values())
    tensors = {name: found[held] for name, held in direct.items()}
    lacking = [name for name in wanted if name not in tensors]
    tensors |= {name: _unpack(checkpoint, name, stored) for name in lacking if f"{name}_blocks" in stored}
    tensors |= {fused.target: _stack(checkpoint, fused, stored) for fused in family.fused if fused.target in lacking}
    _assign(block, tensors, f"block {index}")


def local_name(family: Family, name: str) -> str:
    """A tensor's name inside its block as transformers calls it today; checkpoints may use an older one."""
    for old, new in family.renamed:
        name = name.replace(old, new)
    return name


def read_weights(checkpoint: Tensors, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """These tensors in the checkpoint's dtype. Raises StoredOtherwise for one that is not of 16, 32 or 64-bit floats:
    what is smaller means something only with scales that are stored elsewhere."""
    found = checkpoint.read(names)
    for name, tensor in found.items():
        if tensor.dtype not in _READ:
            raise StoredOtherwise(f"{str(tensor.dtype).removeprefix('torch.')} ({name})")
    return found


def _unpack(checkpoint: Tensors, name: str, stored: Mapping[str, str]) -> torch.Tensor:
    """A tensor stored in MXFP4 (OCP Microscaling Formats 1.0), as gpt-oss's experts are: in bfloat16."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    packed = [stored[part] for part in (f"{name}_blocks", f"{name}_scales") if part in stored]
    if len(packed) < 2:
        raise CheckpointError(f"The checkpoint lacks the scales of {name}: it is not complete.")
    found = checkpoint.read(packed)
    out: torch.Tensor = convert_moe_packed_tensors(*(found[part] for part in packed))
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
    names = [stored[source.format(index)] for source in fused.sources]
    found = read_weights(checkpoint, names)
    return torch.cat([found[name] for name in names])


def _assign(module: nn.Module, tensors: Mapping[str, torch.Tensor], what: str) -> None:
    try:
        module.load_state_dict(dict(tensors), strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"The checkpoint's tensors of {what} have other shapes than its config says.") from error
    missing = [name for name, held in (*module.named_parameters(), *module.named_buffers()) if held.is_meta]
    if missing:
        raise CheckpointError(f"The checkpoint lacks tensors of {what}: {', '.join(missing[:3])}.")
