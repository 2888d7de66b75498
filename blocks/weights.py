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
    tensors = {name: held for name, held in zip(direct, _read(checkpoint, direct.values()), strict=True)}
    for fused in family.fused:
        if fused.target in wanted and fused.target not in tensors:
            tensors[fused.target] = _stack(checkpoint, fused, stored)
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


def _stack(checkpoint: Tensors, fused: Fused, stored: Mapping[str, str]) -> torch.Tensor:
    """One expert after the other, so that no more than one is held beside the result."""
    experts = []
    for index in range(len(stored)):
        if fused.sources[0].format(index) not in stored:
            break
        try:
            parts = _read(checkpoint, [stored[source.format(index)] for source in fused.sources])
        except KeyError as error:
            raise CheckpointError(f"The checkpoint lacks the expert tensor {error}: it is not complete.") from None
        experts.append(parts)
    if not experts:
        raise CheckpointError(f"The checkpoint has no tensors for {fused.target}: it is not complete.")
    rows = sum(part.shape[0] for part in experts[0])
    out = experts[0][0].new_empty((len(experts), rows, *experts[0][0].shape[1:]))
    for index, parts in enumerate(experts):
        torch.cat(parts, out=out[index])
    return out


def _assign(module: nn.Module, tensors: Mapping[str, torch.Tensor], what: str) -> None:
    try:
        module.load_state_dict(dict(tensors), strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"The checkpoint's tensors of {what} have other shapes than its config says.") from error
    missing = [name for name, held in (*module.named_parameters(), *module.named_buffers()) if held.is_meta]
    if missing:
        raise CheckpointError(f"The checkpoint lacks tensors of {what}: {', '.join(missing[:3])}.")
