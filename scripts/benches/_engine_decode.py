"""Decode steps of the engine's benchmark: against the memory's floor, per quantization and batch, and of deep spans."""

from __future__ import annotations

import functools

import torch
from _engine_models import (
    KINDS,
    LLAMA_70B,
    TINY,
    Bench,
    Decoding,
    Figures,
    Shape,
    kv_bytes,
    pages_of,
    release,
    states,
    tell,
)
from _engine_time import copy_rate, host_ms, once, timed
from shoal.blocks.kv import PAGE_TOKENS
from shoal.blocks.span import Row, Span

BATCHES = (1, 16, 32)
CONTEXT = 1024
STEPS = 48
PREFILL = 2048


def floors(bench: Bench) -> Figures:
    """The copy rate, and how long one block's bytes take at that rate, at batch 1."""
    rate = copy_rate(bench.device, bench.size(2 << 30, 1 << 20))
    shape = bench.shape
    n_bytes = {"bf16": 2.0, "int8": 1.0, "nf4": 0.516}
    found = {"copy_gb_per_s": rate / 1e9}
    for name, each in n_bytes.items():
        floor_bytes = shape.parameters * each + shape.kv_bytes(bench.size(CONTEXT, 32))
        found[f"floor_b1_{name}_ms_per_block"] = floor_bytes / rate * 1e3
    return found


def decode(bench: Bench) -> Figures:
    """Milliseconds a block of a decode step: 8 blocks, context 1,024."""
    if "copy_gb_per_s" not in bench.figures:
        bench.figures |= floors(bench)
    found: Figures = {}
    for name in KINDS:
        tell(f"  8 blocks, {name} ...")
        found |= _decode_kind(bench, name)
        release(bench.device)
    for batch in BATCHES:
        ours = found[f"b{batch}_bf16_ms_per_block"]
        found |= {f"b{batch}_{name}_speedup": ours / found[f"b{batch}_{name}_ms_per_block"] for name in KINDS}
        del found[f"b{batch}_bf16_speedup"]
    for name in ("bf16", "nf4", "int8"):
        floor = bench.figures[f"floor_b1_{name}_ms_per_block"]
        found[f"b1_{name}_over_floor"] = found[f"b1_{name}_ms_per_block"] / floor
    return found


def _decode_kind(bench: Bench, name: str) -> Figures:
    blocks, context, steps = bench.size(8, 2), bench.size(CONTEXT, 32), bench.size(STEPS, 2)
    before = _allocated(bench)
    span = bench.span(blocks, max(BATCHES) * (context + steps + 16), name)
    found = _memory(bench, span, name, before)
    for batch in BATCHES:
        work = Decoding(span, batch, context, steps)
        result = timed(work.step, bench.device, steps)
        found[f"b{batch}_{name}_ms_per_block"] = result.wall_ms / blocks
        found[f"b{batch}_{name}_device_ms_per_block"] = result.device_ms / blocks
        found[f"b{batch}_{name}_finite"] = float(torch.isfinite(work.step()).all())
    found[f"host_ms_8_blocks_{name}"] = host_ms(Decoding(span, 1, context, steps).step, bench.device, steps)
    found[f"prefill_{name}_tokens_per_s"] = _prefill(bench, span)
    return found


def _prefill(bench: Bench, span: Span) -> float:
    """Tokens a second of prompts of 2,048 tokens in one piece."""
    tokens = bench.size(PREFILL, 32)
    hidden, rows = states(tokens, span), [Row(tuple(range(tokens // 16)), 0, tokens)]
    for _ in range(2):
        span.forward(hidden, rows)
    return tokens / once(lambda: span.forward(hidden, rows), 4, bench.device).wall_ms * 1e3


def _allocated(bench: Bench) -> int:
    release(bench.device)
    return torch.cuda.memory_allocated(bench.device) if bench.device.type == "cuda" else 0


def _memory(bench: Bench, span: Span, name: str, before: int) -> Figures:
    """What the span holds a weight of its matrices, by what the allocator gave less KV, and a token of its KV."""
    found = {
        f"kv_bytes_per_token_per_block_{name}": kv_bytes(span) / (span.kv.n_slots + PAGE_TOKENS) / len(span.blocks)
    }
    if bench.device.type == "cuda":
        held = _allocated(bench) - before - kv_bytes(span)
        found[f"bytes_per_param_{name}"] = held / bench.shape.parameters / len(span.blocks)
    return found


def mixed(bench: Bench) -> Figures:
    """A chunk of a prompt beside 32 decode tokens at 1,024, bf16, 8 blocks: what the step takes, and the host's part.

    `mixed_POSITION_COUNT_ms` by the chunk's position and tokens, `mixed_0_ms` without a chunk.
    """
    decoders, context = bench.size(32, 4), bench.size(CONTEXT, 32)
    positions, counts = ((0, 4096), (16, 64, 128, 256, 480)) if not bench.tiny else ((0, 64), (16,))
    span = bench.span(bench.size(8, 2), decoders * (context + 16) + max(positions) + max(counts))
    each = pages_of(context + 1)
    rows = [Row(range(index * each, (index + 1) * each), context, 1) for index in range(decoders)]
    guest = range(decoders * each, span.kv.n_pages)
    found: Figures = {}
    for position, count in ((0, 0), *((position, count) for position in positions for count in counts)):
        step = [*rows, Row(guest, position, count)] if count else rows
        hidden = states(decoders + count, span, seed=4)
        work = functools.partial(span.forward, hidden, step)
        label = f"mixed_{position}_{count}" if count else "mixed_0"
        result = timed(work, bench.device, bench.size(16, 2))
        found |= {f"{label}_ms": result.wall_ms, f"{label}_host_ms": host_ms(work, bench.device, bench.size(16, 2))}
    return found


def deep(bench: Bench) -> Figures:
    """32 blocks of the 8B shape on one device: tokens a second, and the host's time of a step."""
    found: Figures = {}
    for name in ("bf16", "nf4"):
        found |= _whole(bench, bench.shape, bench.size(32, 4), name, f"{name}_32_blocks")
    found["host_ms_per_step"] = found["host_ms_bf16_32_blocks"]
    return found


def wide(bench: Bench) -> Figures:
    """20 blocks of the 70B shape in nf4: tokens a second."""
    return _whole(bench, TINY if bench.tiny else LLAMA_70B, bench.size(20, 3), "nf4", "70b_nf4_20_blocks")


def _whole(bench: Bench, shape: Shape, blocks: int, name: str, label: str) -> Figures:
    tell(f"  {blocks} blocks of {shape.name}, {name} ...")
    context, steps = bench.size(CONTEXT, 32), bench.size(STEPS, 2)
    span = bench.span(blocks, 32 * (context + steps + 16), name, shape)
    found: Figures = {}
    for batch, key in ((1, "single"), (32, "b32")):
        result = timed(Decoding(span, batch, context, steps).step, bench.device, steps)
        found[f"{label}_{key}_tokens_per_s"] = batch / result.wall_ms * 1e3
    found[f"host_ms_{label}"] = host_ms(Decoding(span, 1, context, steps).step, bench.device, steps)
    del span
    release(bench.device)
    return found
