"""Random models for the engine's benchmark: checkpoints whose tensors are made when they are read, and spans."""

from __future__ import annotations

import gc
import sys
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from shoal.blocks.kv import PAGE_TOKENS
from shoal.blocks.span import Row, Span, SpanOptions, load_span
from shoal.peer.loading import make_ready
from shoal.peer.pages import PageAllocator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

FILL_TOKENS = 4096  # at most so many tokens in one forward that only fills the KV
KINDS = {  # quantization and KV of what the figures' names call it
    "bf16": ("none", "auto"),
    "nf4": ("nf4", "auto"),
    "int8": ("int8", "auto"),
    "bf16_kv8": ("none", "int8"),
}
Figures = dict[str, float]


class Skipped(Exception):
    """A part cannot run here, and need not."""


@dataclass(frozen=True)
class Shape:
    """One block of a Llama."""

    name: str
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int

    def config(self, blocks: int) -> dict[str, Any]:
        """A config.json of `blocks` such blocks; a small vocabulary, since the ends do not count here."""
        return {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": self.hidden,
            "intermediate_size": self.intermediate, "num_attention_heads": self.heads, "vocab_size": 1024,
            "num_key_value_heads": self.kv_heads, "num_hidden_layers": blocks, "max_position_embeddings": 16384,
            "head_dim": self.hidden // self.heads, "rms_norm_eps": 1e-5, "hidden_act": "silu",
            "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "eos_token_id": None,
            "bos_token_id": None, "pad_token_id": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        }  # fmt: skip

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names inside a block, and shapes."""
        width = self.hidden // self.heads
        return {
            "input_layernorm.weight": (self.hidden,),
            "post_attention_layernorm.weight": (self.hidden,),
            "self_attn.q_proj.weight": (self.heads * width, self.hidden),
            "self_attn.k_proj.weight": (self.kv_heads * width, self.hidden),
            "self_attn.v_proj.weight": (self.kv_heads * width, self.hidden),
            "self_attn.o_proj.weight": (self.hidden, self.heads * width),
            "mlp.gate_proj.weight": (self.intermediate, self.hidden),
            "mlp.up_proj.weight": (self.intermediate, self.hidden),
            "mlp.down_proj.weight": (self.hidden, self.intermediate),
        }

    @property
    def parameters(self) -> int:
        """Weights of one block's matrices."""
        return sum(shape[0] * shape[1] for shape in self.tensors().values() if len(shape) == 2)

    def kv_bytes(self, tokens: int, width_bytes: int = 2) -> int:
        """Bytes of keys and values of `tokens` in one block."""
        return 2 * self.kv_heads * (self.hidden // self.heads) * tokens * width_bytes


LLAMA_8B = Shape("8B", 4096, 14336, 32, 8)
LLAMA_70B = Shape("70B", 8192, 28672, 64, 8)
TINY = Shape("tiny", 64, 128, 4, 2)
CPU_SHAPE = Shape("hidden 512", 512, 2048, 8, 8)


class RandomCheckpoint:
    """A checkpoint to `load_span`: each tensor is drawn from a seed of its name, on `device`, when it is read.

    Matrices have the deviation 1.28 / sqrt(in), which is 0.02 for 4,096 columns: states neither die nor explode.
    `change(weight)`, if given, is what a matrix is passed through: a rounding, to make the reference of one.
    """

    def __init__(
        self,
        shape: Shape,
        blocks: int,
        device: torch.device,
        dtype: torch.dtype,
        change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.shape, self.blocks, self._device, self._dtype = shape, blocks, device, dtype
        self._change = change

    @cached_property
    def config(self) -> Mapping[str, Any]:
        return self.shape.config(self.blocks)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        inside = self.shape.tensors().items()
        return {f"model.layers.{block}.{name}": shape for block in range(self.blocks) for name, shape in inside}

    def tensor_names(self) -> frozenset[str]:
        return frozenset(self._shapes)

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        return {name: self._make(name) for name in names}

    def _make(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        seed = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
        drawn = torch.randn(shape, generator=seed, device=self._device, dtype=torch.float32)
        if len(shape) == 1:
            return (1 + 0.1 * drawn).to(self._dtype)
        matrix = (drawn * (1.28 * shape[-1] ** -0.5)).to(self._dtype)
        return self._change(matrix) if self._change else matrix


@dataclass
class Bench:
    """What all parts share. `figures` hold what the parts before have found."""

    device: torch.device
    tiny: bool
    figures: Figures = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        if self.tiny:
            return TINY
        return LLAMA_8B if self.device.type == "cuda" else CPU_SHAPE

    def size(self, full: int, tiny: int) -> int:
        """A count that is smaller in a smoke test."""
        return tiny if self.tiny else full

    @property
    def dtype(self) -> torch.dtype:
        """What spans compute in: bf16 on CUDA, fp32 elsewhere."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def span(self, blocks: int, tokens: int, kind: str = "bf16", shape: Shape | None = None) -> Span:
        """A span of random weights, held as `kind` of KINDS says (on a CPU in fp32), with KV for `tokens`."""
        checkpoint = RandomCheckpoint(shape or self.shape, blocks, self.device, self.dtype)
        span = load_span(checkpoint, range(blocks), self.options(tokens, kind, self.dtype))
        make_ready(span)  # as a peer does before it serves
        return span

    def options(self, tokens: int, kind: str, dtype: torch.dtype, *, fused: bool = True) -> SpanOptions:
        """How a span of `kind` is held."""
        quantization, kv_dtype = KINDS[kind]
        return SpanOptions(pages_of(tokens), quantization, str(self.device), dtype, kv_dtype, fused=fused)


def pages_of(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE_TOKENS)


def states(count: int, span: Span, seed: int = 0) -> torch.Tensor:
    """Random hidden states `[count, hidden]` on the span's device."""
    generator = torch.Generator(span.device).manual_seed(seed)
    drawn = torch.randn(count, span.spec.hidden_size, generator=generator, device=span.device)
    return drawn.to(span.dtype)


class Decoding:
    """`batch` sequences side by side, decoding `steps` tokens around `context`, then the same positions again.

    Time whole rounds of `steps`: kernels and graphs may differ on both sides of `context`.
    """

    def __init__(self, span: Span, batch: int, context: int, steps: int) -> None:
        self.span, self.steps, self._first = span, steps, context - steps // 2
        allocator = PageAllocator(span.kv.n_pages)
        taken = [allocator.allocate(pages_of(self._first + steps)) for _ in range(batch)]
        self._pages = [pages for pages in taken if pages is not None]
        if len(self._pages) < batch:
            raise ValueError(f"the span's {span.kv.n_pages} pages are too few for {batch} sequences")
        self._hidden = states(batch, span, seed=1)
        self._done = 0
        self._fill()

    def step(self) -> torch.Tensor:
        """One token of every sequence."""
        position = self._first + self._done % self.steps
        self._done += 1
        return self.span.forward(self._hidden, [Row(pages, position, 1) for pages in self._pages])

    def _fill(self) -> None:
        for pages in self._pages:
            for start in range(0, self._first, FILL_TOKENS):
                count = min(FILL_TOKENS, self._first - start)
                self.span.forward(states(count, self.span, seed=2), [Row(pages, start, count)])


def tell(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def release(device: torch.device) -> None:
    """Give back what no one holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def kv_bytes(span: Span) -> int:
    """Bytes of all keys and values, and of their scales, that the span's pool holds; its scratch page too."""
    pairs = [pair for block in span.blocks for pair in span.kv.block(block).pairs]
    return sum(part.nbytes for pair in pairs for part in pair if part is not None)
