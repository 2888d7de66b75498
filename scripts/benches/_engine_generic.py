"""The path of families without a layer of our own: transformers' layers, decode attention by our kernel or by torch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING
from unittest import mock

import torch
from _engine_models import FILL_TOKENS, Figures, RandomCheckpoint, pages_of, release, states, tell
from _engine_time import timed
from shoal.blocks import attention
from shoal.blocks.span import Row, Span, load_span
from shoal.peer.loading import make_ready
from shoal.peer.pages import PageAllocator

if TYPE_CHECKING:
    from _engine_models import Bench

BLOCKS, ROWS = 4, 32
LONGEST = 8192
STEPS = 16


def generic(bench: Bench) -> Figures:
    """Milliseconds a block of a decode step, bf16: of two rows with contexts of 1,024 tokens, and of 32 with contexts
    of 256 to 8,192; `_torch_`: over copies of the pages, as on a device without our kernels."""
    blocks, longest = bench.size(BLOCKS, 2), bench.size(LONGEST, 64)
    contexts = [longest * (1 + index) // ROWS for index in range(ROWS)]
    checkpoint = RandomCheckpoint(bench.shape, blocks, bench.device, bench.dtype)
    tokens = sum(contexts) + 32 * ROWS
    span = load_span(checkpoint, range(blocks), bench.options(tokens, "bf16", bench.dtype, fused=False))
    make_ready(span)  # as a peer does before it serves
    allocator = PageAllocator(span.kv.n_pages)
    held = [allocator.allocate(pages_of(context)) for context in contexts]
    pages = [one for one in held if one is not None]
    for one, context in zip(pages, contexts, strict=True):
        for start in range(0, context, FILL_TOKENS):
            count = min(FILL_TOKENS, context - start)
            span.forward(states(count, span, seed=2), [Row(one, start, count)])
    rows = [Row(one, context - 1, 1) for one, context in zip(pages, contexts, strict=True)]
    index = contexts.index(bench.size(1024, 8))
    even = [Row(pages[at], contexts[index] - 1, 1) for at in (index, index + 1)]
    steps = {"b2": even, "b32": rows}
    found: Figures = {}
    for label, kernels in (("", attention.has_kernels), ("torch_", lambda *_: False)):
        tell(f"  families without a layer of ours, {label or 'kernels'} ...")
        with mock.patch.object(attention, "has_kernels", kernels):
            found |= {f"generic_{label}{name}_ms_per_block": _ms(bench, span, step) for name, step in steps.items()}
        release(bench.device)
    peak = _peaks(bench, span, rows)
    return found | peak


def _ms(bench: Bench, span: Span, rows: list[Row]) -> float:
    hidden = states(sum(row.count for row in rows), span, seed=3)
    work = functools.partial(span.forward, hidden, rows)
    return timed(work, bench.device, bench.size(STEPS, 2)).wall_ms / len(span.blocks)


def _peaks(bench: Bench, span: Span, rows: list[Row]) -> Figures:
    """What a step of 32 rows takes of the device's memory while it runs, MiB."""
    if bench.device.type != "cuda":
        return {}
    found: Figures = {}
    for label, kernels in (("", attention.has_kernels), ("torch_", lambda *_: False)):
        release(bench.device)
        before = torch.cuda.memory_allocated(bench.device)
        torch.cuda.reset_peak_memory_stats(bench.device)
        with mock.patch.object(attention, "has_kernels", kernels):
            span.forward(states(len(rows), span, seed=3), rows)
        torch.cuda.synchronize(bench.device)
        found[f"generic_{label}b32_peak_mib"] = (torch.cuda.max_memory_allocated(bench.device) - before) / 2**20
    return found
