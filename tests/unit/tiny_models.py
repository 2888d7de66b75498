"""Tiny random checkpoints of every family, saved by transformers, and the unsplit model's own answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import DynamicCache

if TYPE_CHECKING:
    from pathlib import Path

VOCAB = 101
WINDOW = 8  # far shorter than the prompts of the tests

_SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_MIXED = ["sliding_attention", "full_attention"] * 2


@dataclass(frozen=True)
class Tiny:
    """One variant of a family: its config class, and the entries in which it differs from `_SMALL`.

    `attention` names the implementation that the unsplit model must run with, where its default leaves something out.
    """

    config: str
    entries: dict[str, Any]
    without: tuple[str, ...] = ()
    attention: str | None = None


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    """Token ids of this shape, the same ones for a seed."""
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def _rope(kind: str, **rest: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **rest}}


_LONGROPE = _rope(
    "longrope",
    long_factor=[1.0 + 0.5 * i for i in range(8)],
    short_factor=[1.0] * 8,
    original_max_position_embeddings=16,
)
_FALCON = {"num_kv_heads": 2, "ffn_hidden_size": 96}
_NO_KV = ("num_key_value_heads",)

TINY: dict[str, Tiny] = {
    "llama": Tiny("LlamaConfig", {"attention_bias": True}),
    "llama-tied": Tiny("LlamaConfig", {"tie_word_embeddings": True, "head_dim": 24}),
    "llama-llama3-rope": Tiny(
        "LlamaConfig",
        _rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
    ),
    "llama-yarn": Tiny("LlamaConfig", _rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama-dynamic-rope": Tiny("LlamaConfig", {**_rope("dynamic", factor=2.0), "max_position_embeddings": 16}),
    "mistral": Tiny("MistralConfig", {"sliding_window": WINDOW}),
    "mixtral": Tiny("MixtralConfig", {"sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": Tiny("Qwen2Config", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}),
    "qwen3": Tiny(
        "Qwen3Config", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2, "head_dim": 24}
    ),
    "qwen3-moe": Tiny(
        "Qwen3MoeConfig",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "mlp_only_layers": [1],
            "norm_topk_prob": True,
        },
    ),
    "gemma2": Tiny(
        "Gemma2Config",
        {
            "sliding_window": WINDOW,
            "head_dim": 16,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 24,
            "tie_word_embeddings": True,
        },
        attention="eager",  # older transformers run Gemma 2 through SDPA, which drops the softcap
    ),
    "gemma3": Tiny(
        "Gemma3TextConfig",
        {
            "sliding_window": WINDOW,
            "head_dim": 16,
            "layer_types": _MIXED,
            "query_pre_attn_scalar": 24,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "phi3": Tiny("Phi3Config", {"sliding_window": WINDOW, "original_max_position_embeddings": 256}),
    "phi3-longrope": Tiny("Phi3Config", {**_LONGROPE, "sliding_window": None, "original_max_position_embeddings": 16}),
    "olmo2": Tiny("Olmo2Config", {}),
    "glm4": Tiny("Glm4Config", {"head_dim": 16, "attention_bias": True}),
    "glm": Tiny("GlmConfig", {"head_dim": 16, "attention_bias": True}),
    "granite": Tiny(
        "GraniteConfig",
        {
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
        },
    ),
    "gpt-oss": Tiny(
        "GptOssConfig",
        {
            "sliding_window": WINDOW,
            "layer_types": _MIXED,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            **_rope("yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=32.0, beta_slow=1.0),
        },
    ),
    "falcon-multi-query": Tiny("FalconConfig", {**_FALCON, "multi_query": True, "alibi": False}, _NO_KV),
    "falcon-new-architecture": Tiny(
        "FalconConfig", {**_FALCON, "new_decoder_architecture": True, "alibi": False, "bias": True}, _NO_KV
    ),
    "falcon-rw": Tiny(
        "FalconConfig",
        {**_FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True, "num_kv_heads": 4},
        _NO_KV,
    ),
    "bloom": Tiny(
        "BloomConfig",
        {"n_layer": 4, "n_head": 6, "hidden_size": 96, "tie_word_embeddings": True},
        ("num_hidden_layers", "num_attention_heads", *_NO_KV),
    ),
    "opt": Tiny("OPTConfig", {"ffn_dim": 96, "word_embed_proj_dim": 64, "tie_word_embeddings": True}, _NO_KV),
    "opt-plain": Tiny(
        "OPTConfig",
        {"ffn_dim": 96, "word_embed_proj_dim": 64, "enable_bias": False, "layer_norm_elementwise_affine": False},
        _NO_KV,
    ),
    "opt-post-norm": Tiny(
        "OPTConfig",
        {"ffn_dim": 96, "word_embed_proj_dim": 32, "do_layer_norm_before": False, "tie_word_embeddings": True},
        _NO_KV,
    ),
    "gpt2": Tiny(
        "GPT2Config",
        {"scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": True, "n_inner": 96},
        ("intermediate_size", *_NO_KV),
    ),
    "gpt-neox": Tiny("GPTNeoXConfig", {**_rope("default", partial_rotary_factor=0.25)}, _NO_KV),
    "gpt-neox-serial": Tiny(
        "GPTNeoXConfig", {**_rope("default", partial_rotary_factor=0.5), "use_parallel_residual": False}, _NO_KV
    ),
}


def save_tiny(variant: str, folder: Path, **sizes: int) -> Any:
    """Save a random model of `variant` with transformers, and give it back as transformers loads it, in float32.
    `sizes`: entries of its config that shall be other than usual."""
    tiny = TINY[variant]
    entries = {**{key: value for key, value in _SMALL.items() if key not in tiny.without}, **tiny.entries, **sizes}
    config = getattr(transformers, tiny.config)(**entries)
    torch.manual_seed(sum(map(ord, variant)))
    model = transformers.AutoModelForCausalLM.from_config(config)
    _spread(model)
    model.save_pretrained(folder)
    chosen = {"attn_implementation": tiny.attention} if tiny.attention else {}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **chosen).eval()


@torch.no_grad()
def _spread(model: torch.nn.Module) -> None:
    """Weights large enough that attention is far from uniform: with the usual ones no mistake in it would show."""
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.normal_(0.0, 1.2 * parameter.shape[-1] ** -0.5)
        else:
            parameter.add_(0.2 * torch.randn_like(parameter))


@torch.inference_mode()
def answers(model: Any, prompt: list[int], forced: list[int], n_greedy: int = 0) -> tuple[torch.Tensor, list[int]]:
    """The unsplit model's logits of prompt and forced tokens `[P + F, vocab]`, then the tokens it picks greedily.

    The prompt goes in as one piece, each later token by itself through transformers' cache.
    """
    model(torch.tensor([[3]]))  # dynamic rotary frequencies remember the longest text until they see a short one
    cache = DynamicCache(config=model.config)

    def run(tokens: list[int]) -> torch.Tensor:
        return model(torch.tensor([tokens]), past_key_values=cache, use_cache=True).logits[0]

    found = [run(prompt), *(run([token]) for token in forced)]
    picked: list[int] = []
    last = found[-1]
    for _ in range(n_greedy):
        picked.append(int(last[-1].argmax()))
        last = run(picked[-1:])
    return torch.cat(found), picked
