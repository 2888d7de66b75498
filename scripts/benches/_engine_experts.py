"""Mixtures of experts in the engine's benchmark: our layer and kernels against transformers' with bitsandbytes'."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

from _engine_models import Bench, Decoding, Figures, RandomCheckpoint, Shape, Skipped, release, states, tell
from _engine_time import timed
from shoal.blocks import parts, quantize
from shoal.blocks.span import Row, Span, load_span
from shoal.peer.loading import make_ready

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCKS, CONTEXT, PROMPT, CHUNK = 2, 1024, 2048, 512
BATCHES = (1, 16, 32)


@dataclass(frozen=True)
class MixtureShape(Shape):
    """One block of a Mixtral: `each` of `experts` compute for a token."""

    experts: int
    each: int

    def config(self, blocks: int) -> dict[str, Any]:
        """As for a Llama, and its experts."""
        return super().config(blocks) | {
            "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": self.experts,
            "num_experts_per_tok": self.each, "sliding_window": None,
        }  # fmt: skip

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names inside a block, and shapes."""
        held = {name: shape for name, shape in super().tensors().items() if not name.startswith("mlp.")}
        return held | {
            "mlp.gate.weight": (self.experts, self.hidden),
            "mlp.experts.gate_up_proj": (self.experts, 2 * self.intermediate, self.hidden),
            "mlp.experts.down_proj": (self.experts, self.hidden, self.intermediate),
        }


@dataclass(frozen=True)
class OssShape(MixtureShape):
    """One block of a gpt-oss, whose heads are 64 wide: with biases, and experts stored the other way round."""

    def config(self, blocks: int) -> dict[str, Any]:
        """Every block attends to all that came before."""
        return super().config(blocks) | {
            "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "head_dim": 64, "attention_bias": True,
            "layer_types": ["full_attention"] * blocks, "swiglu_alpha": 1.702, "swiglu_limit": 7.0,
        }  # fmt: skip

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names inside a block, and shapes."""
        rows = {"q": 64 * self.heads, "k": 64 * self.kv_heads, "v": 64 * self.kv_heads}
        inner, count = self.intermediate, self.experts
        attention = {f"self_attn.{name}_proj.weight": (size, self.hidden) for name, size in rows.items()}
        return attention | {f"self_attn.{name}_proj.bias": (size,) for name, size in rows.items()} | {
            "self_attn.o_proj.weight": (self.hidden, 64 * self.heads), "self_attn.o_proj.bias": (self.hidden,),
            "self_attn.sinks": (self.heads,), "input_layernorm.weight": (self.hidden,),
            "post_attention_layernorm.weight": (self.hidden,), "mlp.router.weight": (count, self.hidden),
            "mlp.router.bias": (count,), "mlp.experts.gate_up_proj": (count, self.hidden, 2 * inner),
            "mlp.experts.gate_up_proj_bias": (count, 2 * inner), "mlp.experts.down_proj": (count, inner, self.hidden),
            "mlp.experts.down_proj_bias": (count, self.hidden),
        }  # fmt: skip


FEW = MixtureShape("Mixtral-8x7B", 4096, 14336, 32, 8, 8, 2)
MANY = MixtureShape("Qwen3-30B-A3B", 2048, 768, 16, 4, 128, 8)  # its experts; attention a little smaller
OSS = OssShape("gpt-oss-120b", 2880, 2880, 64, 8, 128, 4)
TINY, TINY_OSS = MixtureShape("tiny", 64, 64, 4, 2, 4, 2), OssShape("tiny", 64, 64, 4, 2, 4, 2)


def experts(bench: Bench) -> Figures:
    """Milliseconds a block of a decode step behind 1,024 tokens, and prompt tokens a second a block; `_bnb_`: the same
    weights as transformers and bitsandbytes compute with them, one expert after the other."""
    if bench.device.type != "cuda" and not bench.tiny:
        raise Skipped("a CPU computes experts as transformers does")
    shapes = [("few", FEW, ("nf4",)), ("many", MANY, ("nf4", "bf16")), ("oss", OSS, ("nf4",))]
    found: Figures = {}
    for name, shape, kinds in shapes:
        tiny = TINY_OSS if name == "oss" else TINY
        for kind in kinds:
            for beside in ("", "bnb_") if kind != "bf16" else ("", "hf_"):
                tell(f"  {name} experts, {kind}{beside and f', {beside[:-1]}'} ...")
                found |= _measured(bench, tiny if bench.tiny else shape, kind, f"experts_{name}_{kind}_{beside}")
                release(bench.device)
    return found


def _measured(bench: Bench, shape: MixtureShape, kind: str, name: str) -> Figures:
    plain = name.endswith(("bnb_", "hf_"))
    blocks, context = 1 if plain else bench.size(BLOCKS, 2), bench.size(CONTEXT, 24)
    batches: Sequence[int] = (1, 16) if plain else BATCHES
    tokens = (max(batches) + 2) * (context + 32) + bench.size(PROMPT, 64)
    checkpoint = RandomCheckpoint(shape, blocks, bench.device, bench.dtype)
    with ExitStack() as stack:
        for module in (parts, quantize) if plain else ():
            stack.enter_context(mock.patch.object(module, "has_kernels", return_value=False))
        span = load_span(checkpoint, range(blocks), bench.options(tokens, kind, bench.dtype, fused=not plain))
        if not plain:
            make_ready(span)  # as a peer does before it serves
        found = {f"{name}b{batch}_ms_per_block": _decode(bench, span, batch, context) for batch in batches}
        found[f"{name}prefill_tokens_per_s"] = _prefill(bench, span)
    return found


def _decode(bench: Bench, span: Span, batch: int, context: int) -> float:
    steps = bench.size(16, 2)
    work = Decoding(span, batch, context, steps)
    return timed(work.step, bench.device, steps).wall_ms / len(span.blocks)


def _prefill(bench: Bench, span: Span) -> float:
    """Of a prompt in chunks, through one block."""
    length, chunk = bench.size(PROMPT, 64), bench.size(CHUNK, 32)
    hidden, pages = states(chunk, span, seed=4), tuple(range(span.kv.n_pages))

    def work() -> None:
        for start in range(0, length, chunk):
            span.forward(hidden, [Row(pages, start, chunk)])

    return length / timed(work, bench.device, bench.size(3, 1)).wall_ms * 1e3 * len(span.blocks)
