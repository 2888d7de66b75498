"""Owns what a block of a Llama-like model is made of, read off transformers' module; must not know devices or batches.

A block that is made of nothing else than this describes can be computed by our own fused layer. What cannot be seen in
the module's parts (scale, window, softcap) is told by the block itself: it runs once on the meta device, where nothing
is computed, with an attention function that only writes down what it is asked.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

PROBE = "shoal_probe"

# Where the four places for a norm are, by the names of a block's norms: before and after attention, before and after
# the MLP. The same name means different places in different families, so that the whole set decides.
_NORM_PLACES: dict[frozenset[str], tuple[str | None, str | None, str | None, str | None]] = {
    frozenset(name for name in places if name): places
    for places in (
        ("input_layernorm", None, "post_attention_layernorm", None),
        (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
        ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
        (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
    )
}
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu": functional.gelu,
}


@dataclass(frozen=True)
class Attention:
    """What a block asks of attention. `rotary_dim`: how many of a head's first numbers are rotated; `interleaved`:
    pairs are neighbours, not a half apart."""

    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    interleaved: bool
    scale: float
    window: int | None
    softcap: float | None


@dataclass(frozen=True)
class RMSNorm:
    """Root mean square norm (Zhang and Sennrich, 2019, arXiv:1910.07467); `plus_one`: the weight is stored less one."""

    weight: torch.Tensor
    eps: float
    plus_one: bool = False


@dataclass(frozen=True)
class Structure:
    """A block: norms before and after attention and MLP, norms of queries and keys, and two pairs of matrices; or a
    `mixture` of experts, transformers' own module, in place of the second pair. `sinks [heads]`: gpt-oss's."""

    attention: Attention
    norms: tuple[RMSNorm | None, RMSNorm | None, RMSNorm | None, RMSNorm | None]
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    activation: str
    residual_scale: float
    qkv: tuple[nn.Linear, ...]
    o: nn.Linear
    gate_up: tuple[nn.Linear, ...] = ()
    down: nn.Linear | None = None
    mixture: nn.Module | None = None
    sinks: torch.Tensor | None = None


class _Enough(Exception):
    """Attention has been asked, and no more of the block need run."""


def probe(
    block: nn.Module,
    rotary_dim: int,
    library: ModuleType,
    has_experts: Callable[[nn.Module], bool] = lambda _: False,
) -> Attention | None:
    """What a block on the meta device asks of attention; None if it computes anything that our own layer does not.
    `has_experts`: whether it computes what a module of experts does."""
    if not _is_llama_like(block, has_experts):
        return None
    config: Any = block.self_attn.config  # type: ignore[union-attr]
    asked: dict[str, Any] = {}

    def note(_: nn.Module, query: torch.Tensor, key: torch.Tensor, *_rest: Any, **given: Any) -> tuple[Any, None]:
        asked.update(given, query=query.shape, key=key.shape)
        raise _Enough

    before, interleaved = config._attn_implementation, _interleaved(library)
    ALL_ATTENTION_FUNCTIONS.register(PROBE, note)
    try:
        config._attn_implementation = PROBE
        with torch.inference_mode(), torch.device("meta"), suppress(_Enough):
            width = rotary_dim if hasattr(library, "rotate_half") else rotary_dim // 2
            angles = torch.empty((1, 1, width), device="meta")
            hidden = torch.empty((1, 1, config.hidden_size), device="meta")
            block(hidden, position_embeddings=(angles, angles), attention_mask=None)
    finally:
        config._attn_implementation = before
    if "query" not in asked or interleaved is None or (asked.get("s_aux") is None) == hasattr(block.self_attn, "sinks"):
        return None
    return Attention(
        heads=asked["query"][1],
        kv_heads=asked["key"][1],
        head_dim=asked["query"][3],
        rotary_dim=rotary_dim,
        interleaved=interleaved,
        scale=float(asked["scaling"]),
        window=asked.get("sliding_window"),
        softcap=asked.get("softcap"),
    )


def _interleaved(library: ModuleType) -> bool | None:
    """Whether a family rotates neighbours as pairs, and not numbers half a head apart; None: neither, or not known."""
    turned: list[float] = []
    if (rotate := getattr(library, "rotate_half", None)) is not None:
        turned = rotate(torch.arange(4)).tolist()
    elif (rotate := getattr(library, "_apply_rotary_emb", None)) is not None:  # cosines and sines of half a head
        turned = rotate(torch.arange(4.0), torch.zeros(2), torch.ones(2)).tolist()
    by_neighbours = turned == [-1, 0, -3, 2]
    return by_neighbours if by_neighbours or turned == [-2, -3, 0, 1] else None


def structure_of(block: nn.Module, attention: Attention) -> Structure:
    """The parts of a loaded block that `probe` described."""
    attend: Any = block.self_attn
    mlp: Any = block.mlp
    before, after, before_mlp, after_mlp = (_norm(block, name) for name in _NORM_PLACES[_norm_names(block)])
    mixture = hasattr(mlp, "experts")
    return Structure(
        attention=attention,
        norms=(before, after, before_mlp, after_mlp),
        q_norm=_norm(attend, "q_norm"),
        k_norm=_norm(attend, "k_norm"),
        activation=_activation(mlp) or "",
        residual_scale=float(getattr(block, "residual_multiplier", 1.0)),
        qkv=_linears(attend, ("q_proj", "k_proj", "v_proj"), "qkv_proj"),
        o=attend.o_proj,
        gate_up=() if mixture else _linears(mlp, ("gate_proj", "up_proj"), "gate_up_proj"),
        down=None if mixture else mlp.down_proj,
        mixture=mlp if mixture else None,
        sinks=attend.sinks.detach() if hasattr(attend, "sinks") else None,
    )


def _is_llama_like(block: nn.Module, has_experts: Callable[[nn.Module], bool]) -> bool:
    """Whether the block has the parts that we compute, and no others with weights."""
    attention, mlp = getattr(block, "self_attn", None), getattr(block, "mlp", None)
    if attention is None or mlp is None or _norm_names(block) not in _NORM_PLACES:
        return False
    mixture = _is_mixture(mlp, has_experts)
    more = {"q_norm", "k_norm"} | ({"sinks"} if mixture else set())  # our C for a CPU, where no mixture is, knows none
    fits = (
        _parts(block) <= {"self_attn", "mlp", *_norm_names(block)},
        _parts(attention) - more in ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"qkv_proj", "o_proj"}),
        mixture
        or (_parts(mlp) in ({"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"}) and _activation(mlp)),
    )
    linear = (part for module in (attention, mlp) for name, part in module.named_children() if name.endswith("_proj"))
    norms = [child for module in (block, attention) for name, child in module.named_children() if "norm" in name]
    return (
        all(fits)
        and all(type(part) is nn.Linear for part in linear)
        and all(_plus_one(norm) is not None for norm in norms)
    )


def _is_mixture(mlp: nn.Module, has_experts: Callable[[nn.Module], bool]) -> bool:
    """A router and its experts, and nothing that all tokens go through."""
    return _parts(mlp) in ({"gate", "experts"}, {"router", "experts"}) and has_experts(mlp.experts)  # type: ignore[arg-type]


def _parts(module: nn.Module) -> set[str]:
    """Names of children with weights, and of the module's own weights."""
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return own | {name for name, child in module.named_children() if any(True for _ in child.parameters())}


def _norm_names(block: nn.Module) -> frozenset[str]:
    return frozenset(name for name, _ in block.named_children() if name.endswith("layernorm"))


def _linears(module: Any, apart: tuple[str, ...], together: str) -> tuple[nn.Linear, ...]:
    return (getattr(module, together),) if hasattr(module, together) else tuple(getattr(module, n) for n in apart)


def _norm(parent: Any, name: str | None) -> RMSNorm | None:
    norm: Any = getattr(parent, name, None) if name else None
    return norm and RMSNorm(norm.weight.detach(), _eps(norm), bool(_plus_one(norm)))


def _eps(norm: Any) -> float:
    return float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0)))


def _plus_one(norm: Any) -> bool | None:
    """Whether the weight is stored less one; None if this is no root mean square norm: tried, not read off its name."""
    shown, weight = torch.linspace(-2, 3, 7), torch.linspace(0.5, 2, 7)
    twin = copy.copy(norm)
    twin._parameters = {"weight": nn.Parameter(weight, requires_grad=False)}
    if set(norm._parameters) != {"weight"} or not _eps(norm):
        return None
    found = twin(shown)
    for plus_one in (False, True):
        own = functional.rms_norm(shown, (7,), weight + plus_one, _eps(norm))
        if torch.allclose(own, found, rtol=1e-4):
            return plus_one
    return None


def _activation(mlp: Any) -> str | None:
    function = getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None)
    if function is None:
        return None
    shown = torch.linspace(-4, 4, 33)
    return next((name for name, own in _ACTIVATIONS.items() if torch.allclose(own(shown), function(shown))), None)
