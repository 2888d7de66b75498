"""The CPU's part of the engine's benchmark: the span against transformers on the same blocks, and int8 KV's loss."""

from __future__ import annotations

import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _engine_models import Bench, Figures, RandomCheckpoint, pages_of, states, tell
from shoal.blocks.checkpoint import resolve
from shoal.blocks.ends import load_ends
from shoal.blocks.span import Row, Span, SpanOptions, load_span

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HELD_OUT = Path(__file__).parents[2] / "tests" / "data" / "held_out.jsonl"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SESSIONS = 8
CONTEXT = 256
WINDOW = 256


def speed(bench: Bench) -> Figures:
    """Decode steps of 8 blocks of hidden 512 at context 256, one session and eight, ours and transformers' in turn.

    transformers runs eight sessions one after the other: its `generate` shares a step only among prompts that start
    together. Ours run as one batch, as a peer runs them; in fp32 also without our own C (`short`).
    """
    found: Figures = {"cpu_threads": float(torch.get_num_threads())}
    for name, dtype in DTYPES.items():
        tell(f"  {name} ...")
        found |= _speed(bench, name, dtype)
    return found


def _speed(bench: Bench, name: str, dtype: torch.dtype) -> Figures:
    blocks = bench.size(8, 2)
    checkpoint = RandomCheckpoint(bench.shape, blocks, torch.device("cpu"), dtype)
    options = SpanOptions(SESSIONS * pages_of(CONTEXT + 128), dtype=dtype)
    span = load_span(checkpoint, range(blocks), options)
    ours, theirs = _Ours(span), _Theirs(checkpoint, dtype)
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "span": (ours.single, 1), "transformers": (theirs.single, 1), "span_8": (ours.all, SESSIONS),
        "transformers_8": (theirs.all, SESSIONS),
    }  # fmt: skip
    if dtype == torch.float32:
        without = _Ours(load_span(checkpoint, range(blocks), replace(options, short=False)))
        ways |= {"torch": (without.single, 1), "torch_8": (without.all, SESSIONS)}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(bench.size(7, 2)):
        for way, (step, tokens) in ways.items():
            rates[way].append(tokens / _median_s(step, bench.size(12, 2)))
    best = {way: max(each) for way, each in rates.items()}  # other work on the machine slows some rounds, speeds none
    found = {f"cpu_{name}_{way}_tokens_per_s": rate for way, rate in best.items()}
    found[f"cpu_{name}_single_speedup"] = best["span"] / best["transformers"]
    found[f"cpu_{name}_8_speedup"] = best["span_8"] / best["transformers_8"]
    if "torch" in best:
        found[f"cpu_{name}_short_speedup"] = best["span"] / best["torch"]
        found[f"cpu_{name}_short_8_speedup"] = best["span_8"] / best["torch_8"]
    found[f"cpu_{name}_8_over_single"] = best["span_8"] / best["span"]
    found[f"cpu_{name}_difference"] = _difference(ours.first().float(), theirs.first().float())
    return found


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def _median_s(step: Callable[[], object], count: int) -> float:
    step()
    times = []
    for _ in range(count):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


class _Ours:
    """Eight sessions on one span, each with CONTEXT tokens."""

    def __init__(self, span: Span) -> None:
        self._span, size = span, pages_of(CONTEXT + 128)
        self._pages = [tuple(range(index * size, (index + 1) * size)) for index in range(SESSIONS)]
        self._token = states(1, span, seed=1)
        for index, pages in enumerate(self._pages):
            span.forward(states(CONTEXT, span, seed=10 + index), [Row(pages, 0, CONTEXT)])
        self._steps = 0

    def first(self) -> torch.Tensor:
        """The first session's output at position CONTEXT."""
        return self._span.forward(self._token, [Row(self._pages[0], CONTEXT, 1)])

    def single(self) -> torch.Tensor:
        return self._step(self._pages[:1])

    def all(self) -> torch.Tensor:
        return self._step(self._pages)

    def _step(self, pages: Sequence[Sequence[int]]) -> torch.Tensor:
        position = CONTEXT + self._steps % 128
        self._steps += 1
        return self._span.forward(self._token.expand(len(pages), -1), [Row(held, position, 1) for held in pages])


class _Theirs:
    """The same blocks and sessions through transformers' layers, each session with its own cache, cut back to CONTEXT
    before it would grow past ours."""

    def __init__(self, checkpoint: RandomCheckpoint, dtype: torch.dtype) -> None:
        from transformers import DynamicCache, LlamaConfig, LlamaModel

        config = LlamaConfig(**{key: value for key, value in checkpoint.config.items() if key != "model_type"})
        self._model: Any = LlamaModel(config).to(dtype).eval()
        tensors = checkpoint.read(checkpoint.tensor_names())
        self._model.load_state_dict(
            {name.removeprefix("model."): tensor for name, tensor in tensors.items()}, strict=False
        )
        self._model.norm = torch.nn.Identity()
        self._caches = [DynamicCache(config=config) for _ in range(SESSIONS)]
        self._token = _drawn(1, config.hidden_size, 1, dtype)
        for index, cache in enumerate(self._caches):
            self._run(_drawn(CONTEXT, config.hidden_size, 10 + index, dtype), cache)
        self._steps = 0

    def first(self) -> torch.Tensor:
        """The first session's output at position CONTEXT."""
        _cut(self._caches[0])
        return self._run(self._token, self._caches[0])

    def single(self) -> torch.Tensor:
        return self._step(self._caches[0])

    def all(self) -> torch.Tensor:
        return torch.cat([self._step(cache) for cache in self._caches])

    def _step(self, cache: Any) -> torch.Tensor:
        if cache.get_seq_length() >= CONTEXT + 128:
            _cut(cache)
        return self._run(self._token, cache)

    @torch.inference_mode()
    def _run(self, hidden: torch.Tensor, cache: Any) -> torch.Tensor:
        out = self._model(inputs_embeds=hidden[None], past_key_values=cache, use_cache=True)
        found: torch.Tensor = out.last_hidden_state[0]
        return found


def _cut(cache: Any) -> None:
    """Back to CONTEXT tokens; releases of transformers agree on negative arguments only."""
    if (surplus := cache.get_seq_length() - CONTEXT) > 0:
        cache.crop(-surplus)


def _drawn(count: int, width: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def perplexity(bench: Bench) -> Figures:
    """The demo model's held-out perplexity, token by token, so that all attention reads stored KV: as it is, and in
    int8."""
    windows = _windows(bench.size(4096, 512), bench.size(WINDOW, 64))
    found: Figures = {}
    for kind in ("auto", "int8"):
        tell(f"  KV {kind} ...")
        found[f"ppl_kv_{kind}"] = _perplexity(windows, kind)
    found["ppl_kv_int8_loss"] = found["ppl_kv_int8"] / found["ppl_kv_auto"] - 1
    return found


def _windows(tokens: int, window: int) -> torch.Tensor:
    """The held-out text of `scripts/bench quant` as windows `[n, window]` of token ids."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(resolve("demo").path, trust_remote_code=False)
    texts = [json.loads(line)["text"] for line in HELD_OUT.read_text("utf-8").splitlines()]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = [token for text in texts for token in (*tokenizer(text, verbose=False)["input_ids"], *end)]
    count = min(len(ids), tokens) // window
    return torch.tensor(ids[: count * window]).reshape(count, window)


@torch.inference_mode()
def _perplexity(windows: torch.Tensor, kind: str) -> float:
    checkpoint = resolve("demo")
    ends, size = load_ends(checkpoint, dtype=torch.float32), pages_of(windows.shape[1])
    options = SpanOptions(len(windows) * size, dtype=torch.float32, kv_dtype=kind)
    span = load_span(checkpoint, range(ends.spec.n_blocks), options)
    pages = [tuple(range(index * size, (index + 1) * size)) for index in range(len(windows))]
    loss = 0.0
    for position in range(windows.shape[1] - 1):
        hidden = ends.embed(windows[:, position], torch.full((len(windows),), position))
        out = span.forward(hidden, [Row(held, position, 1) for held in pages])
        predicted = ends.logits(out).float().log_softmax(-1)
        loss -= float(predicted.gather(-1, windows[:, position + 1, None]).sum())
    return math.exp(loss / windows[:, 1:].numel())
