"""Owns the network as it is trained: a Llama decoder with the dropout that transformers' own lacks. Knows no data.

Parameter names and arithmetic are those of ``transformers.LlamaForCausalLM``, so a trained state loads there as it is
(`as_llama` checks it). Pre-normalisation with RMSNorm, rotary positions, SwiGLU and grouped-query attention as in
Touvron et al., "LLaMA" (2023) and Ainslie et al., "GQA" (2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class NetConfig:
    """Sizes. ``hidden`` and ``intermediate`` are multiples of 64, so that no 4-bit block straddles two rows."""

    vocab: int = 8192
    hidden: int = 384
    intermediate: int = 896
    blocks: int = 12
    heads: int = 6
    kv_heads: int = 2
    context: int = 2048
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    def as_llama_config(self) -> dict[str, Any]:
        """The keyword arguments of ``transformers.LlamaConfig`` for this network."""
        return {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "tie_word_embeddings": True,
        }


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same shape and dtype."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight.to(x.dtype) * wide.to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention over a whole window."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        kv_width = config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden, config.hidden, bias=False)
        self.k_proj = nn.Linear(config.hidden, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden, kv_width, bias=False)
        self.o_proj = nn.Linear(config.hidden, config.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[batch, tokens, hidden] to the same shape."""
        q, k, v = (self._heads(projected) for projected in (self.q_proj(x), self.k_proj(x), self.v_proj(x)))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (x.repeat_interleave(self.config.heads // self.config.kv_heads, dim=1) for x in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:-1], -1, self.config.head_dim).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.down_proj = nn.Linear(config.intermediate, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] to the same shape."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """One transformer layer; dropout falls on what each half adds to the residual stream."""

    def __init__(self, config: NetConfig, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[batch, tokens, hidden] to the same shape."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        out: Tensor = x + self.dropout(self.mlp(self.post_attention_layernorm(x)))
        return out


class Body(nn.Module):
    """Embedding, blocks and final norm: what transformers calls ``model``."""

    def __init__(self, config: NetConfig, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(Block(config, dropout) for _ in range(config.blocks))
        self.norm = RMSNorm(config.hidden, config.norm_eps)


class DemoNet(nn.Module):
    """The whole network; the head is the embedding."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: NetConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config, dropout)
        self.dropout = nn.Dropout(dropout)
        angles = torch.arange(config.context)[:, None] * config.rope_theta ** -(
            torch.arange(0, config.head_dim, 2) / config.head_dim
        )
        self.register_buffer("cos", torch.cat((angles, angles), -1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat((angles, angles), -1).sin(), persistent=False)
        self._init_weights()

    def forward(self, ids: Tensor) -> Tensor:
        """[batch, tokens] ids, tokens <= context, to logits [batch, tokens, vocab]."""
        x = self.dropout(self.model.embed_tokens(ids))
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for block in self.model.layers:
            x = block(x, cos, sin)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def loss(self, ids: Tensor) -> Tensor:
        """Mean cross-entropy in nats of ids [batch, tokens + 1], each predicted from those before it."""
        logits = self(ids[:, :-1]).float()
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def parameter_count(self) -> int:
        """Trained numbers, the tied head counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _init_weights(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last_of_branch = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / ((2 * self.config.blocks) ** 0.5 if last_of_branch else 1.0))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on [batch, heads, tokens, head_dim], halves paired (Su et al., "RoFormer", 2021)."""
    low, high = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-high, low), dim=-1) * sin.to(x.dtype)


def as_llama(config: NetConfig, state: dict[str, Tensor], bos: int, eos: int) -> Any:
    """The trained state in a ``LlamaForCausalLM`` on the CPU, after a check that both give the same logits.

    Raises ValueError if any logit differs by more than 1e-3 in float32.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaForCausalLM(LlamaConfig(**config.as_llama_config(), bos_token_id=bos, eos_token_id=eos)).eval()
    state = {name: value.detach().float().cpu() for name, value in state.items()}
    llama.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]}, strict=True)
    net = DemoNet(config).eval()
    net.load_state_dict(state)
    ids = torch.randint(config.vocab, (2, 96), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = float((llama(ids).logits - net(ids)).abs().max())
    if difference > 1e-3:
        raise ValueError(
            f"the trained network and LlamaForCausalLM differ by {difference:.2g}; their arithmetic has drifted apart"
        )
    return llama
