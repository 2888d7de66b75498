"""Owns a span: consecutive blocks of a model on one device, and their forward over a ragged batch; knows no network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from shoal.blocks.attention import PagedCache, kernel_order
from shoal.blocks.batch import Row, check_rows, make_batch
from shoal.blocks.cpu.short import ShortSteps
from shoal.blocks.cpu.single import SingleToken
from shoal.blocks.kernels import has_kernels
from shoal.blocks.kv import PAGE_TOKENS, KVPool
from shoal.blocks.own_attention import DenseCache, Rectangle, bias_arguments, rectangles
from shoal.blocks.parts import Parts, Placement, load_parts
from shoal.blocks.spec import HasConfig, spec_of
from shoal.blocks.weights import Tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal.blocks.batch import Batch
    from shoal.blocks.rotary import Embedding
    from shoal.blocks.steps import Steps

__all__ = ["Row", "Span", "SpanOptions", "load_span"]

_PROMPT_TOKENS = 256  # of a prompt that is tried before anybody is served


class Checkpoint(HasConfig, Tensors, Protocol):
    """A config and tensors by name."""


@dataclass(frozen=True)
class SpanOptions:
    """How a span is held: `quantization` is one of blocks.choices.QUANTIZATIONS; `dtype` None is the checkpoint's own;
    `kv_pages` is the size of the KV pool in pages of kv.PAGE_TOKENS tokens, `kv_dtype` one of blocks.choices.KV_DTYPES.
    `fused` False: transformers' own layers also where ours compute the same; `short` False: none of our C in those.
    `host_blocks` of the blocks stay in host memory and are streamed (blocks.offload)."""

    kv_pages: int
    quantization: str = "none"
    device: str = "cpu"
    dtype: torch.dtype | None = None
    kv_dtype: str = "auto"
    host_blocks: int = 0
    fused: bool = True
    short: bool = True


@dataclass(frozen=True, slots=True)
class _Pass:
    """Tokens that go through the blocks together: their indices `[B, n]` in the batch (None: all, as `[1, T]`)."""

    tokens: torch.Tensor | None
    arguments: dict[str, Any]
    embeddings: dict[str, Embedding]


class Span:
    """Blocks `blocks` of a model, with their KV. Made by `load_span`; used by one thread at a time."""

    def __init__(self, parts: Parts, kv: KVPool) -> None:
        self.spec, self.kv = parts.spec, kv
        self.blocks, self.dtype, self.device = kv.blocks, kv.dtype, kv.device
        self.fused = parts.fused
        self._parts = parts
        plain = parts.short if kv.kind == "auto" else None
        self._short = ShortSteps(parts, kv, plain) if plain is not None else None
        bare = self._short if kv.dtype == torch.float32 else None
        self._single = SingleToken(bare, parts, kv.n_slots) if bare is not None else None
        self._steps = _steps(parts, kv) if parts.fused and has_kernels(kv.device, kv.dtype) else None

    def forward(
        self, hidden: torch.Tensor, rows: Sequence[Row], start: int | None = None, stop: int | None = None
    ) -> torch.Tensor:
        """Run blocks `start` to `stop` (absolute; all by default) on `hidden [T, hidden_size]`, rows one after another.

        Each row writes keys and values of its new positions, then attends to positions 0 to its last. Returns
        `[T, hidden_size]` in the span's dtype, on its device. Raises ValueError for rows or blocks that do not fit.
        """
        run, n_tokens = self._range(start, stop), sum(row.count for row in rows)
        if tuple(hidden.shape) != (n_tokens, self.spec.hidden_size):
            raise ValueError(
                f"hidden states of shape {tuple(hidden.shape)} do not fit rows of {n_tokens} tokens in all and a "
                f"hidden size of {self.spec.hidden_size}"
            )
        if torch.is_inference_mode_enabled():
            return self._forward(hidden, rows, run)
        with torch.inference_mode():
            return self._forward(hidden, rows, run)

    def single(self, payload: memoryview, row: Row, start: int, stop: int) -> tuple[bytes, bool] | None:
        """As `forward` for one token whose hidden state `[hidden_size]` comes and goes as the bytes of float32; and
        whether all numbers of the result are finite. None: only `forward` can do that. Errors: as there."""
        if self._single is None or row.count != 1 or len(payload) != 4 * self.spec.hidden_size:
            return None
        return self._single.forward(payload, self._range(start, stop), row)

    def room(self, count: int) -> torch.Tensor | None:
        """Host memory `[count, hidden_size]` in the span's dtype from which `forward` takes hidden states without a
        copy of their own; what it held before is overwritten. None: there is none, or not for so many."""
        return self._steps.graphs.room(count) if self._steps is not None else None

    @torch.inference_mode()
    def warm_up(self, rows: int, tokens: int, step_tokens: int) -> None:
        """Make ready for steps of up to `step_tokens` before anybody's KV is there, above all for decode steps of up to
        `rows` rows and contexts of `tokens`."""
        if self._steps is not None:
            self._steps.warm_up(range(self.blocks.start, self.blocks.stop), rows, tokens, step_tokens)
        elif self.device.type == "cuda":
            row = Row((0,), PAGE_TOKENS - 1, 1)
            for count in (*(1 << power for power in range(rows.bit_length())), _PROMPT_TOKENS):
                self.forward(torch.zeros((count, self.spec.hidden_size)), (row,) * count)
            # A prompt needs other kernels than steps of few rows.
            prompt = (Row((0,), 0, PAGE_TOKENS),) * (_PROMPT_TOKENS // PAGE_TOKENS)
            self.forward(torch.zeros((_PROMPT_TOKENS, self.spec.hidden_size)), prompt)

    def _forward(self, hidden: torch.Tensor, rows: Sequence[Row], run: range) -> torch.Tensor:
        if self._steps is not None:
            return self._steps.forward(hidden, rows, run)
        held = check_rows(rows, self.kv.n_slots)
        with kernel_order(self.device):
            return self._through(hidden.to(self.device, self.dtype), run, make_batch(held, self.device))

    def _through(self, state: torch.Tensor, run: range, batch: Batch) -> torch.Tensor:
        if self.fused:
            return self._through_fused(state, run, batch)
        passes = self._passes(state, batch)
        if passes[0].tokens is None:
            return self._run(state[None], run, passes[0])[0]
        out = torch.empty_like(state)
        for group in passes:
            out[group.tokens] = self._run(state[group.tokens], run, group)
        return out

    def _through_fused(self, state: torch.Tensor, run: range, batch: Batch) -> torch.Tensor:
        turns = self._parts.rotary.turns(state, batch) if self._parts.rotary else {}
        if self._short is not None and self._short.takes(batch):
            return self._short.forward(state, run, batch, turns)
        for index in run:
            turn = turns[""] if "" in turns else turns[self.spec.layer_types[index]]
            state = self._parts.layers[index](state, turn, self.kv.block(index), batch)
        return state

    def _passes(self, state: torch.Tensor, batch: Batch) -> list[_Pass]:
        rotary = self._parts.rotary
        embeddings = rotary.embeddings(state, batch) if rotary else {}
        if self.spec.family.attention == "interface":
            cache = PagedCache(self.kv, batch)
            arguments = {self.spec.family.cache_argument: cache, "paged": cache, "attention_mask": None}
            return [_Pass(None, arguments, embeddings)]
        return [self._rectangular_pass(group, embeddings) for group in rectangles(batch)]

    def _rectangular_pass(self, group: Rectangle, embeddings: dict[str, Embedding]) -> _Pass:
        arguments: dict[str, Any] = {self.spec.family.cache_argument: DenseCache(self.kv, group)}
        arguments |= bias_arguments(group, self.dtype, self._parts.bias)
        placed = {name: (cos[0][group.tokens], sin[0][group.tokens]) for name, (cos, sin) in embeddings.items()}
        return _Pass(group.tokens, arguments, placed)

    def _run(self, state: torch.Tensor, run: range, group: _Pass) -> torch.Tensor:
        types, given = self.spec.layer_types, group.arguments
        for index in run:
            if group.embeddings:
                by_type = group.embeddings
                given["position_embeddings"] = by_type[""] if "" in by_type else by_type[types[index]]
            out = self._parts.layers[index](state, **given)
            state = out[0] if isinstance(out, tuple) else out
        return state

    def _range(self, start: int | None, stop: int | None) -> range:
        first = self.blocks.start if start is None else start
        last = self.blocks.stop if stop is None else stop
        if not self.blocks.start <= first < last <= self.blocks.stop:
            raise ValueError(f"blocks {first}:{last} are not in this span, {self.blocks.start}:{self.blocks.stop}")
        return range(first, last)


def _steps(parts: Parts, kv: KVPool) -> Steps:
    """Our own kernels are imported for a GPU alone: they need Triton."""
    from shoal.blocks.steps import Steps

    return Steps(parts, kv)


def load_span(
    checkpoint: Checkpoint, blocks: range, options: SpanOptions, on_block: Callable[[int], None] | None = None
) -> Span:
    """Read blocks from a checkpoint onto a device, one at a time, so that the peak is the span plus one block.
    `on_block` is told how many there are so far.

    Raises UnsupportedFamily, CheckpointError, QuantizationError, and ValueError for blocks that the model lacks.
    """
    spec = spec_of(checkpoint)
    if not 0 <= blocks.start < blocks.stop <= spec.n_blocks or blocks.step != 1:
        raise ValueError(f"blocks {blocks.start}:{blocks.stop} are not in this model of {spec.n_blocks} blocks")
    device, dtype = torch.device(options.device), options.dtype or spec.dtype
    short = options.short and options.kv_dtype == "auto"
    placement = Placement(options.quantization, device, dtype, options.fused, options.host_blocks, short)
    parts = load_parts(checkpoint, spec, blocks, placement, on_block)
    return Span(parts, KVPool(spec, blocks, options.kv_pages, device, dtype, options.kv_dtype))
