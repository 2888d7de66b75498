"""Owns the client's ends of a model, embedding and head, and its tokenizer; must not know blocks or pages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from shoal.blocks.cpu.short import ShortLinear, fits, short_library
from shoal.blocks.errors import CheckpointError, PromptTooLong
from shoal.blocks.packed import PackedLinear, can_pack
from shoal.blocks.spec import HasConfig, ModelSpec, spec_of
from shoal.blocks.weights import read_weights
from torch import nn
from torch.nn.functional import embedding
from torch.nn.functional import linear as project

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


_PACKED_TIED_BYTES = 1 << 28  # a tied head is packed, and so held twice, only up to this size


class Checkpoint(HasConfig, Protocol):
    """A config and tensors by name."""

    def tensor_names(self) -> frozenset[str]: ...

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]: ...


class HasPath(Protocol):
    """A checkpoint's folder, with its tokenizer files."""

    @property
    def path(self) -> Path: ...


@dataclass(frozen=True)
class _Weights:
    """The ends' parts; None where the family has no such part. `head` is `[..., width]` to `[..., vocab_size]`, None
    where it was not asked for."""

    embedding: torch.Tensor
    head: nn.Module | None
    positions: torch.Tensor | None
    project_in: torch.Tensor | None
    project_out: torch.Tensor | None


class Ends:
    """Token ids to hidden states, and hidden states to logits, as the unsplit model computes them. See `load_ends`."""

    def __init__(self, spec: ModelSpec, weights: _Weights, norms: tuple[nn.Module | None, nn.Module | None]) -> None:
        self.spec = spec
        self._weights = weights
        self._first_norm, self._final_norm = norms
        self._scale = _embed_scale(spec)
        self._divisor = _entry(spec, spec.family.logits_divisor)
        self._softcap = _entry(spec, spec.family.logits_softcap)

    @property
    def device(self) -> torch.device:
        """Where the ends compute."""
        return self._weights.embedding.device

    @property
    def width(self) -> int:
        """Of what `normed` gives, and of the embedding's rows."""
        return self._weights.embedding.shape[1]

    @torch.inference_mode()
    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Hidden states `[T, hidden_size]` of token ids `[T]` at positions `[T]`; positions matter where learned.

        Raises PromptTooLong for a learned position that the model does not have.
        """
        device = self._weights.embedding.device
        hidden = embedding(token_ids.to(device), self._weights.embedding)
        if self._scale is not None:
            hidden = hidden * torch.tensor(self._scale, dtype=hidden.dtype, device=device)
        if self._weights.project_in is not None:
            hidden = project(hidden, self._weights.project_in)
        if self._weights.positions is not None:
            hidden = hidden + self._learned(positions.to(device))
        return hidden if self._first_norm is None else self._norm(self._first_norm, hidden)

    @torch.inference_mode()
    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the head sees, `[T, width]`: the last block's hidden states `[T, hidden_size]` behind the final norm."""
        return self._normed(hidden)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits `[T, vocab_size]` in float32 of the last block's hidden states `[T, hidden_size]`."""
        return self._logits(self._normed(hidden))

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits `[T, vocab_size]` in float32 of what `normed` gives."""
        return self._logits(hidden)

    def _normed(self, hidden: torch.Tensor) -> torch.Tensor:
        weights = self._weights
        hidden = hidden.to(weights.embedding.device, weights.embedding.dtype)
        if self._final_norm is not None:
            hidden = self._norm(self._final_norm, hidden)
        return hidden if weights.project_out is None else project(hidden, weights.project_out)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._weights.head is None:
            raise ValueError("these ends were loaded without their head")
        logits: torch.Tensor = self._weights.head(hidden)
        if self._divisor is not None:
            logits = logits / self._divisor
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits.float()

    def _learned(self, positions: torch.Tensor) -> torch.Tensor:
        table, offset = self._weights.positions, self.spec.family.position_offset
        if table is None:
            raise ValueError("this family has no learned positions")
        if positions.numel() and int(positions.max()) + offset >= table.shape[0]:
            raise PromptTooLong(
                f"Position {int(positions.max())} is past the model's context of {table.shape[0] - offset} tokens: "
                "shorten the prompt or ask for fewer new tokens."
            )
        return embedding(positions + offset, table)

    @staticmethod
    def _norm(norm: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = norm(hidden)
        return out


def load_ends(
    checkpoint: Checkpoint, device: str = "cpu", dtype: torch.dtype | None = None, *, head: bool = True
) -> Ends:
    """Read a checkpoint's embedding, norms and, if asked for, head, and no block; `dtype` None is the checkpoint's own.

    Raises UnsupportedFamily, CheckpointError, or StoredOtherwise for weights that are quantized or packed.
    """
    spec = spec_of(checkpoint)
    family, names = spec.family, checkpoint.tensor_names()
    prefix = family.prefix(names)
    kind = dtype or spec.dtype
    stored = read_weights(checkpoint, family.end_tensors(names))
    tensors = {name.removeprefix(prefix): held.to(device, kind) for name, held in stored.items()}
    table, matrix = _table_and_head(spec, tensors) if head else (_need(tensors, f"{family.embedding}.weight"), None)
    weights = _Weights(
        embedding=table,
        head=None if matrix is None else _linear(matrix, tied=matrix is table),
        positions=_need(tensors, f"{family.positions}.weight") if family.positions else None,
        project_in=tensors.get(f"{family.project_in}.weight"),
        project_out=tensors.get(f"{family.project_out}.weight"),
    )
    first = _load_norm(spec, family.embedding_norm, tensors) if family.embedding_norm else None
    final = _load_norm(spec, family.final_norm, tensors) if _has_final_norm(spec.config) else None
    return Ends(spec, weights, (first, final))


def load_tokenizer(checkpoint: HasPath) -> Any:
    """The checkpoint's tokenizer, by transformers, from its folder only, with no code of the checkpoint's.

    Raises CheckpointError if there is none that can be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(checkpoint.path), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"The tokenizer in {checkpoint.path} cannot be read: {error}") from error


def _need(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    try:
        return tensors[name]
    except KeyError:
        raise CheckpointError(f"The checkpoint lacks {name}: it is not complete.") from None


def _table_and_head(spec: ModelSpec, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embedding and head as transformers ties them: where a checkpoint holds both, they are not tied, whatever its
    config says; where it holds one and the config ties them, that one is both."""
    name = f"{spec.family.embedding}.weight"
    head = next((tensors[held] for held in spec.family.heads if held in tensors), None)
    if not spec.config.tie_word_embeddings:
        return _need(tensors, name), _need(tensors, spec.family.heads[0]) if head is None else head
    table = _need(tensors, name) if head is None else tensors.get(name, head)
    return table, table if head is None or torch.equal(head, table) else head


def _linear(weight: torch.Tensor, *, tied: bool) -> nn.Module:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    found = short_library(weight.dtype) if weight.device.type == "cpu" else None
    if found is not None and fits(found, weight.shape):
        return ShortLinear(linear, found)
    if weight.device.type != "cpu" or not can_pack(weight.dtype) or (tied and weight.nbytes > _PACKED_TIED_BYTES):
        return linear
    return PackedLinear(linear)


def _load_norm(spec: ModelSpec, path: str, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    family = spec.family
    weighted = bool(getattr(spec.config, "layer_norm_elementwise_affine", True))  # OPT's may have no weights
    norm = family.norm.build(spec.hidden_size, _entry(spec, family.norm_eps), weighted=weighted)
    for part, _ in list(norm.named_parameters()):
        norm.register_parameter(part, nn.Parameter(_need(tensors, f"{path}.{part}"), requires_grad=False))
    return norm


def _has_final_norm(config: Any) -> bool:
    """OPT's oldest sizes norm after each block and have none at the end."""
    if getattr(config, "_remove_final_layer_norm", False):
        return False
    return bool(getattr(config, "do_layer_norm_before", True))


def _entry(spec: ModelSpec, name: str | None) -> float | None:
    value = getattr(spec.config, name) if name else None
    return None if value is None else float(value)


def _embed_scale(spec: ModelSpec) -> float | None:
    scale = _entry(spec, spec.family.embed_scale)
    return math.sqrt(scale) if scale is not None and spec.family.embed_scale_is_root else scale
