"""Owns the shape of a model as its config tells it; must not read weights nor touch a device."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from shoal.blocks.errors import CheckpointError, PromptTooLong, StoredOtherwise
from shoal.blocks.families import Family, family_of
from transformers import AutoConfig

if TYPE_CHECKING:
    from collections.abc import Mapping


# The ends of names that quantized weights, or what they are to be multiplied by, have beside or in place of `weight`.
_OTHERWISE = ("weight_scale", "weight_scale_inv", ".SCB", "weight_packed", "qweight", "absmax")
_QUANTIZED = ("quantization_config", "compression_config")  # the config's entries


class HasConfig(Protocol):
    """What a spec is made from: anything with a checkpoint's `config.json` as a mapping. `tensor_names` and
    `stored_dtype`, if it has them as a `Checkpoint` does, tell how the weights are stored."""

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
        switch = self._switch
        return tokens if switch is None else int(tokens > switch)

    def outgrown(self, made: int, tokens: int) -> bool:
        """Whether keys that a text of `made` tokens gave are to be made again for one of `tokens`: where longrope goes
        from one of its two sets of frequencies to the other, transformers runs all tokens again."""
        return self._switch is not None and (made > self._switch) != (tokens > self._switch)

    @property
    def _switch(self) -> int | None:
        """The tokens up to which longrope's short frequencies hold; None for other rotary embeddings."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        return rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None


def spec_of(checkpoint: HasConfig) -> ModelSpec:
    """The spec of a checkpoint.

    Raises UnsupportedFamily for an architecture that is not served, CheckpointError for a config that cannot be read,
    StoredOtherwise for weights that are quantized or packed.
    """
    stored = dict(checkpoint.config)
    family = family_of(stored)
    _check_stored(family, stored, _names(checkpoint))
    config = _library_config(family, stored)
    n_blocks = int(config.num_hidden_layers)
    heads, width = _kv_heads(config), _head_dim(config)
    return ModelSpec(
        family=family,
        config=config,
        n_blocks=n_blocks,
        hidden_size=int(config.hidden_size),
        vocab_size=int(config.vocab_size),
        max_position=max(_max_position(config), _stretched(_text(family, stored))),
        kv_heads=(heads,) * n_blocks,
        head_dim=(width,) * n_blocks,
        dtype=_dtype(getattr(config, "dtype", None) or _unnamed_dtype(checkpoint, family)),
    )


def check_length(tokens: int, context: int) -> None:
    """Errors: `PromptTooLong` for more tokens than a model's context, its `max_position`."""
    if tokens > context:
        raise PromptTooLong(f"{tokens} tokens are more than the model's context of {context}: shorten the text.")


def _check_stored(family: Family, stored: Mapping[str, Any], names: frozenset[str]) -> None:
    """Raise StoredOtherwise where config or names tell of weights that are more than numbers."""
    for part in (stored, _text(family, stored)):
        for key in _QUANTIZED:
            told = part.get(key)
            method = told.get("quant_method") if isinstance(told, dict) else None
            if told and (method, family.model_type) != ("mxfp4", "gpt_oss"):
                raise StoredOtherwise(method or "an unknown quantization")
    start = f"{family.prefix(names)}{family.blocks}."
    if strange := min((name for name in names if name.startswith(start) and name.endswith(_OTHERWISE)), default=None):
        raise StoredOtherwise(f"numbers and their scales ({strange})")


def _text(family: Family, stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the config says of the text model."""
    return stored.get(family.config_key) or {} if family.config_key else stored


def _library_config(family: Family, stored: dict[str, Any]) -> Any:
    values = {
        key: value for key, value in _text(family, stored).items() if key not in ("auto_map", "quantization_config")
    }
    if not (values.get("dtype") or values.get("torch_dtype")):  # of a model whose text part says nothing of its own
        values |= {key: stored[key] for key in ("dtype", "torch_dtype") if stored.get(key)}
    try:
        # A copy: the library completes what it is given in place.
        return type(AutoConfig.for_model(values.get("model_type"))).from_dict(copy.deepcopy(values))
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


def _stretched(text: Mapping[str, Any]) -> int:
    """The context that rope scaling makes of the one before it, 0 where the config does not name that one: then its
    `max_position_embeddings` may be either."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    before, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    scales = rope.get("rope_type", rope.get("type")) in ("yarn", "linear", "dynamic")
    return int(before * factor) if scales and isinstance(before, int) and isinstance(factor, int | float) else 0


def _unnamed_dtype(checkpoint: HasConfig, family: Family) -> torch.dtype:
    """Of a model whose config names none: what stored MXFP4 becomes, or that of the embedding if it has 16 bits, of
    which only directories tell: not every machine has that part of a model of the hub, and all must say the same."""
    if any(checkpoint.config.get(key) for key in _QUANTIZED):
        return torch.bfloat16
    stored_dtype = getattr(checkpoint, "stored_dtype", None)
    found = stored_dtype and stored_dtype(f"{family.prefix(_names(checkpoint))}{family.embedding}.weight")
    return found if found in (torch.float16, torch.bfloat16) else torch.float32


def _names(checkpoint: HasConfig) -> frozenset[str]:
    found: frozenset[str] = getattr(checkpoint, "tensor_names", frozenset)()
    return found


def _dtype(named: object) -> torch.dtype:
    found = getattr(torch, str(named).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"config.json names a dtype that torch does not have: {named}.")
    return found
