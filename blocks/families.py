"""Owns what differs between model families, as data; must not know tensors, devices or how a block is run.

A family names where transformers keeps its blocks and where a checkpoint keeps its tensors. The modeling code itself is
transformers' own: nothing is copied here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal.blocks.errors import UnsafeCheckpoint, UnsupportedFamily
from shoal.blocks.norms import Norm

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True)
class Fused:
    """One parameter that stacks per-expert tensors: `target[e]` is `sources[..]` of expert e, concatenated by rows."""

    target: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """Where a family's parts live. Paths are relative to the model's body; `None` means the family has no such part.

    `prefixes`: what may stand before the body's names in a checkpoint. `heads`: names of an untied LM head's weight.
    `cache_argument`: the block's keyword for its cache. `attention`: "interface" if the block calls transformers'
    attention interface, "own" if it computes attention by itself. `alibi`: the module's function that builds ALiBi
    biases (Press et al., 2021, arXiv:2108.12409); `alibi_in_mask`: the block wants them, scaled, inside the mask.
    `fused`: parameters that stack what checkpoints hold per expert; `renamed`: old names inside a block, with the new.
    `config_key`: where the text model's config lies inside the checkpoint's, if the checkpoint has more than text.
    `embed_scale`, `logits_divisor`, `logits_softcap`, `norm_eps`: names of the config's entries that hold the figure.
    """

    name: str
    model_type: str
    module: str
    block: str
    rotary: str | None = None
    rotary_per_layer_type: bool = False
    norm: Norm = Norm.LAYER
    norm_eps: str | None = "rms_norm_eps"
    blocks: str = "layers"
    embedding: str = "embed_tokens"
    final_norm: str = "norm"
    positions: str | None = None
    position_offset: int = 0
    embedding_norm: str | None = None
    project_in: str | None = None
    project_out: str | None = None
    prefixes: tuple[str, ...] = ("model.", "")
    heads: tuple[str, ...] = ("lm_head.weight",)
    cache_argument: str = "past_key_values"
    attention: str = "interface"
    alibi: str | None = None
    alibi_in_mask: bool = False
    embed_scale: str | None = None
    embed_scale_is_root: bool = False
    logits_divisor: str | None = None
    logits_softcap: str | None = None
    fused: tuple[Fused, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    config_key: str | None = None

    def prefix(self, names: Iterable[str]) -> str:
        """What stands before the body's tensor names in a checkpoint that holds `names`."""
        found = frozenset(names)
        for prefix in self.prefixes:
            start = f"{prefix}{self.blocks}."
            if any(name.startswith(start) for name in found):
                return prefix
        return self.prefixes[0]

    def block_prefix(self, names: Iterable[str], index: int) -> str:
        """What stands before the tensor names of block `index`, the last dot included."""
        return f"{self.prefix(names)}{self.blocks}.{index}."

    def block_tensors(self, names: Iterable[str], index: int) -> list[str]:
        """The checkpoint's tensor names that belong to block `index`, sorted."""
        found = frozenset(names)
        start = self.block_prefix(found, index)
        return sorted(name for name in found if name.startswith(start))

    def end_tensors(self, names: Iterable[str]) -> list[str]:
        """The checkpoint's tensor names that the client's ends need: embedding, positions, norms, projections, head."""
        found = frozenset(names)
        prefix = self.prefix(found)
        norms, projections = (self.embedding_norm, self.final_norm), (self.project_in, self.project_out)
        parts = (self.embedding, self.positions, *norms, *projections)
        starts = tuple(f"{prefix}{part}." for part in parts if part)
        return sorted(name for name in found if name.startswith(starts) or name in self.heads)

    def wants(self, name: str, blocks: range, *, ends: bool) -> bool:
        """Whether a tensor of that name may be needed for `blocks` or, if asked, the ends: to choose what to fetch."""
        for prefix in self.prefixes:
            start = f"{prefix}{self.blocks}."
            if name.startswith(start):
                index = name.removeprefix(start).partition(".")[0]
                return index.isdecimal() and int(index) in blocks
        return ends


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint's `config.json`.

    Raises UnsupportedFamily, naming those that are served; UnsafeCheckpoint where only the checkpoint's own code could
    run it.
    """
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is not None:
        return family
    if config.get("auto_map"):
        raise UnsafeCheckpoint(
            f"Model type {model_type!r} would run code from the checkpoint, which Shoal never does: choose one of "
            f"{supported_families()}."
        )
    raise UnsupportedFamily(f"Model type {model_type!r} is not served: choose one of {supported_families()}.")


def supported_families() -> str:
    """The names of all families, for messages."""
    return ", ".join(dict.fromkeys(family.name for family in FAMILIES.values()))


_QWEN_EXPERTS = (
    Fused("mlp.experts.gate_up_proj", ("mlp.experts.{}.gate_proj.weight", "mlp.experts.{}.up_proj.weight")),
    Fused("mlp.experts.down_proj", ("mlp.experts.{}.down_proj.weight",)),
)
_MIXTRAL_EXPERTS = (
    Fused("mlp.experts.gate_up_proj", ("mlp.experts.{}.w1.weight", "mlp.experts.{}.w3.weight")),
    Fused("mlp.experts.down_proj", ("mlp.experts.{}.w2.weight",)),
)


def _like_llama(name: str, model_type: str, stem: str, **rest: Any) -> Family:
    """A family whose classes and parts are called as Llama's are, `stem` standing for the model in class names."""
    parts: dict[str, Any] = {
        "module": model_type,
        "block": f"{stem}DecoderLayer",
        "rotary": f"{stem}RotaryEmbedding",
        "norm": Norm.RMS,
    }
    return Family(name, model_type, **(parts | rest))


_GEMMA: dict[str, Any] = {
    "norm": Norm.RMS_PLUS_ONE,
    "embed_scale": "hidden_size",
    "embed_scale_is_root": True,
    "logits_softcap": "final_logit_softcapping",
}

_LIST = (
    _like_llama("Llama", "llama", "Llama"),
    _like_llama("Mistral", "mistral", "Mistral"),
    _like_llama("Mixtral", "mixtral", "Mixtral", fused=_MIXTRAL_EXPERTS, renamed=(("block_sparse_moe.", "mlp."),)),
    _like_llama("Qwen2", "qwen2", "Qwen2"),
    _like_llama("Qwen3", "qwen3", "Qwen3"),
    _like_llama("Qwen3-MoE", "qwen3_moe", "Qwen3Moe", fused=_QWEN_EXPERTS),
    _like_llama("Gemma 2", "gemma2", "Gemma2", **_GEMMA),
    _like_llama("Gemma 3", "gemma3_text", "Gemma3", module="gemma3", rotary_per_layer_type=True, **_GEMMA),
    _like_llama(
        "Gemma 3",
        "gemma3",
        "Gemma3",
        rotary_per_layer_type=True,
        prefixes=("language_model.model.", "model.language_model."),
        heads=("language_model.lm_head.weight", "lm_head.weight"),
        config_key="text_config",
        **_GEMMA,
    ),
    _like_llama("Phi-3", "phi3", "Phi3"),
    _like_llama("OLMo 2", "olmo2", "Olmo2", norm=Norm.RMS_WIDE),
    _like_llama("GLM-4", "glm4", "Glm4"),
    _like_llama("GLM-4", "glm", "Glm"),
    _like_llama("Granite", "granite", "Granite", embed_scale="embedding_multiplier", logits_divisor="logits_scaling"),
    _like_llama("gpt-oss", "gpt_oss", "GptOss", norm=Norm.RMS_WIDE),
    Family(
        "Falcon",
        "falcon",
        "falcon",
        "FalconDecoderLayer",
        rotary="FalconRotaryEmbedding",
        norm_eps="layer_norm_epsilon",
        blocks="h",
        embedding="word_embeddings",
        final_norm="ln_f",
        prefixes=("transformer.", ""),
        cache_argument="layer_past",
        attention="own",
        alibi="build_alibi_tensor",
        alibi_in_mask=True,
    ),
    Family(
        "BLOOM",
        "bloom",
        "bloom",
        "BloomBlock",
        norm_eps="layer_norm_epsilon",
        blocks="h",
        embedding="word_embeddings",
        embedding_norm="word_embeddings_layernorm",
        final_norm="ln_f",
        prefixes=("transformer.", ""),
        cache_argument="layer_past",
        attention="own",
        alibi="build_alibi_tensor",
    ),
    Family(
        "OPT",
        "opt",
        "opt",
        "OPTDecoderLayer",
        norm_eps=None,
        final_norm="final_layer_norm",
        positions="embed_positions",
        position_offset=2,
        project_in="project_in",
        project_out="project_out",
        prefixes=("model.decoder.", "decoder.", ""),
    ),
    Family(
        "GPT-2",
        "gpt2",
        "gpt2",
        "GPT2Block",
        norm_eps="layer_norm_epsilon",
        blocks="h",
        embedding="wte",
        positions="wpe",
        final_norm="ln_f",
        prefixes=("transformer.", ""),
    ),
    Family(
        "GPT-NeoX",
        "gpt_neox",
        "gpt_neox",
        "GPTNeoXLayer",
        rotary="GPTNeoXRotaryEmbedding",
        norm_eps="layer_norm_eps",
        embedding="embed_in",
        final_norm="final_layer_norm",
        prefixes=("gpt_neox.", ""),
        heads=("lm_head.weight", "embed_out.weight"),
        cache_argument="layer_past",
    ),
)

FAMILIES: dict[str, Family] = {family.model_type: family for family in _LIST}
