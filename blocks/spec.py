"""Owns the shape of a model as its config tells it; must not read weights nor touch a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from shoal.blocks.errors import CheckpointError, PromptTooLong
from shoal.blocks.families import Family, family_of
from transformers import AutoConfig

if TYPE_CHECKING:
    from collections.abc import Mapping


class HasConfig(Protocol):
    """What a spec is made from: anything with a checkpoint's `config.json` as a mapping."""

    @property
    def config(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class ModelSpec:
    """A model's shape: `kv_heads` and `head_dim` have one entry per block; `max_position` is its context in tokens."""

    family: Family
    config: Any
    n_blocks: int
    hidden_size: int
    vocab_size: int
    max_position: int
    kv_heads: tuple[int, ...]
    head_dim: tuple[int, ...]
    dtype: torch.dtype

    @property
    def layer_types(self) -> tuple[str, ...]:
        """Attention type of each block ("full_attention", "sliding_attention"); all full where the config is silent."""
        types = getattr(self.config, "layer_types", None)
        return tuple(types) if types else ("full_attention",) * self.n_blocks

    def length_kind(self, tokens: int) -> int:
        """Prompts of one kind give a token that they share the same keys: 0 unless rotary embeddings depend on the
        prompt's length (see `blocks.rotary`)."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        kinds = {str(part.get("rope_type", "")) for part in (rope, *rope.values()) if isinstance(part, dict)}
        if not any(kind == "longrope" or "dynamic" in kind for kind in kinds):
            return 0
        switch = rope.get("original_max_position_embeddings") if "longrope" in kinds else None
        return tokens if switch is None else int(tokens > switch)


def spec_of(checkpoint: HasConfig) -> ModelSpec:
    """The spec of a checkpoint.

    Raises UnsupportedFamily for an architecture that is not served, CheckpointError for a config that cannot be read.
    """
    stored = dict(checkpoint.config)
    family = family_of(stored)
    config = _library_config(family, stored)
    n_blocks = int(config.num_hidden_layers)
    heads, width = _kv_heads(config), _head_dim(config)
    return ModelSpec(
        family=family,
        config=config,
        n_blocks=n_blocks,
        hidden_size=int(config.hidden_size),
        vocab_size=int(config.vocab_size),
        max_position=_max_position(config),
        kv_heads=(heads,) * n_blocks,
        head_dim=(width,) * n_blocks,
        dtype=_dtype(config),
    )


def check_length(tokens: int, context: int) -> None:
    """Errors: `PromptTooLong` for more tokens than a model's context, its `max_position`."""
    if tokens > context:
        raise PromptTooLong(f"{tokens} tokens are more than the model's context of {context}: shorten the text.")


def _library_config(family: Family, stored: dict[str, Any]) -> Any:
    text = stored.get(family.config_key, {}) if family.config_key else stored
    values = {key: value for key, value in text.items() if key not in ("auto_map", "quantization_config")}
    if "dtype" not in values and "torch_dtype" not in values:  # of a model whose text part says nothing of its own
        values |= {key: stored[key] for key in ("dtype", "torch_dtype") if stored.get(key)}
    method = (stored.get("quantization_config") or {}).get("quant_method")
    if method not in (None, "mxfp4"):
        raise CheckpointError(
            f"The checkpoint's weights are stored as {method}, which is not read: choose the model's unquantized "
            "checkpoint, and let the peer quantize it."
        )
    try:
        return type(AutoConfig.for_model(values.get("model_type"))).from_dict(values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"config.json of this {family.name} model cannot be read: {error}.") from error


def _kv_heads(config: Any) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    for name in ("num_key_value_heads", "num_kv_heads"):
        if count := getattr(config, name, None):
            return int(count)
    return int(config.num_attention_heads)


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _max_position(config: Any) -> int:
    for name in ("max_position_embeddings", "seq_length"):
        if tokens := getattr(config, name, None):
            return int(tokens)
    return 2048  # BLOOM's training length, for configs that name none: ALiBi itself has no limit


def _dtype(config: Any) -> torch.dtype:
    named = getattr(config, "dtype", None) or torch.float32
    found = getattr(torch, str(named).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"config.json names a dtype that torch does not have: {named}.")
    return found
