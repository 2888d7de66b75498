"""What a loaded module keeps in memory: its tensors, wherever they hang, and their bytes; knows no blocks by name."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable


def held_tensors(block: nn.Module) -> list[torch.Tensor]:
    """Every tensor that a block keeps, once: parameters, buffers, tensors in plain attributes, containers and
    dataclasses, and bitsandbytes' scales and codes, which hang on its parameters."""
    found: list[torch.Tensor] = []
    seen: dict[int, object] = {}
    pending: list[object] = [block]
    while pending:
        thing = pending.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, torch.Tensor):
            found.append(thing)
        pending.extend(_inside(thing))
    return found


def held_bytes(blocks: Iterable[nn.Module]) -> int:
    """Bytes that loaded blocks hold; tensors that share memory count once."""
    sizes: dict[object, int] = {}
    for block in blocks:
        for tensor in held_tensors(block):
            if tensor.is_mkldnn:  # oneDNN's own layout shows no storage
                sizes[id(tensor)] = tensor.numel() * tensor.element_size()
            else:
                storage = tensor.untyped_storage()
                sizes[tensor.device, storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _inside(thing: object) -> Iterable[object]:
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, list | tuple):
        return list(thing)
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return [getattr(thing, field.name) for field in dataclasses.fields(thing)]
    if isinstance(thing, nn.Module | torch.Tensor) or type(thing).__module__.startswith("bitsandbytes"):
        return list(getattr(thing, "__dict__", {}).values())
    return ()
