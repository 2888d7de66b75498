"""What a client holds of a model: its ends, its tokenizer, where its texts end. Knows no swarm and no session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from shoal.blocks.checkpoint import resolve
from shoal.blocks.ends import load_ends, load_tokenizer
from shoal.blocks.errors import CheckpointError
from shoal.blocks.lean import leave_layers_out
from shoal.blocks.spec import spec_of
from shoal.client.generation import eos_token_ids

if TYPE_CHECKING:
    from shoal.blocks.checkpoint import Checkpoint
    from shoal.blocks.ends import Ends
    from shoal.blocks.hub_progress import Progress


@dataclass(frozen=True)
class ClientModel:
    """What a client holds of a model; `dtype` is that of its ends and of the hidden states it sends. `tokenizer` is
    None where the checkpoint has none."""

    checkpoint: Checkpoint
    ends: Ends
    tokenizer: Any | None
    dtype: str
    eos: frozenset[int]


def load_model(
    name: str, dtype: str | None, revision: str | None = None, progress: Progress | None = None
) -> ClientModel:
    """Read a model's ends: from the hub only the shards that hold them. `dtype` None: the checkpoint's own.

    Errors: those of `blocks`.
    """
    leave_layers_out()
    config_only = resolve(name, wanted=lambda _: False, revision=revision)
    wanted = spec_of(config_only).family.end_tensors(config_only.tensor_names())
    checkpoint = resolve(name, wanted=frozenset(wanted).__contains__, revision=config_only.revision, progress=progress)
    kind: torch.dtype = getattr(torch, dtype) if dtype else spec_of(checkpoint).dtype
    return ClientModel(
        checkpoint,
        load_ends(checkpoint, dtype=kind),
        _tokenizer(checkpoint),
        str(kind).removeprefix("torch."),
        eos_token_ids(checkpoint.path, checkpoint.config),
    )


def _tokenizer(checkpoint: Checkpoint) -> Any | None:
    """None for a checkpoint without a usable one: token ids can be continued all the same."""
    try:
        return load_tokenizer(checkpoint)
    except CheckpointError:
        return None
