"""Attention in the engine's benchmark: our kernels over pages, and torch's `varlen_attn` over the same numbers."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

import torch
from _engine_models import Bench, Figures, Skipped, pages_of, release, tell
from _engine_time import graphed
from shoal.blocks.batch import Row
from shoal.blocks.kv import PAGE_TOKENS, BlockKV

if TYPE_CHECKING:
    from collections.abc import Callable

HEADS, KV_HEADS, WIDTH = 32, 8, 128  # of Llama-3-8B
CALLS = 8  # in turns over so many blocks' KV: none of it is in the caches
# Tokens of a row's step, rows, tokens in the KV with them.
WORK = {
    "b1_1024": (1, 1, 1024), "b1_8192": (1, 1, 8192), "b32_1024": (1, 32, 1024), "b32_8192": (1, 32, 8192),
    "chunk_512": (512, 1, 512), "chunk_4608": (512, 1, 4608), "prompt_2048": (2048, 1, 2048),
    "prompt_8192": (8192, 1, 8192), "ragged_4": (512, 4, 2048),
}  # fmt: skip


def attention(bench: Bench) -> Figures:
    """Milliseconds of attention of one block, by graph; `_varlen_`: by torch, over each row's keys laid out one after
    the other, which pages are not. `varlen_block_table`: whether this torch's takes a table of pages, and, if so, of
    ours (its flash attention wants pages of a multiple of 256 tokens)."""
    if bench.device.type != "cuda":
        raise Skipped("the kernels are written for CUDA devices")
    found: Figures = {"varlen_block_table": _block_table(bench.device)}
    for name, (count, rows, held) in WORK.items():
        tell(f"  attention, {name} ...")
        ours, theirs = _works(bench.device, count, rows, held)
        found[f"attention_{name}_ms"] = graphed(ours, bench.device) / CALLS
        try:
            found[f"attention_varlen_{name}_ms"] = graphed(theirs, bench.device) / CALLS
            found[f"attention_{name}_ratio"] = found[f"attention_{name}_ms"] / found[f"attention_varlen_{name}_ms"]
        except (RuntimeError, TypeError) as error:
            tell(f"  varlen_attn: {str(error).splitlines()[0]}")
        release(bench.device)
    return found


def _works(device: torch.device, count: int, rows: int, held: int) -> tuple[Callable[[], None], Callable[[], None]]:
    from shoal.blocks.kernels.decode import choose_splits, decode_attention
    from shoal.blocks.kernels.prefill import prefill_attention
    from shoal.blocks.kernels.tiles import prefill_tiles

    pages = pages_of(held)
    order = torch.randperm(rows * pages, generator=torch.Generator().manual_seed(0)).view(rows, pages).int()
    query = torch.randn((rows * count, HEADS, WIDTH), device=device, dtype=torch.bfloat16)
    shape = (rows * pages * PAGE_TOKENS, KV_HEADS, WIDTH)
    stores = [BlockKV(*torch.randn((2, *shape), device=device, dtype=torch.bfloat16)) for _ in range(CALLS)]
    asked: dict[str, Any] = {"scale": WIDTH**-0.5, "window": None, "softcap": None, "sinks": None}
    if count == 1:
        table, ends = order.to(device), torch.full((rows,), held, device=device, dtype=torch.int32)
        splits = choose_splits(rows, KV_HEADS, device)
        ours = functools.partial(decode_attention, table=table, ends=ends, splits=splits, **asked)
    else:
        spread = [Row(tuple(held_pages), held - count, count) for held_pages in order.tolist()]
        tiles = prefill_tiles(spread, HEADS // KV_HEADS, device)
        ours = functools.partial(prefill_attention, tiles=tiles, **asked)
    varlen = _varlen(device, count, rows, held)

    def paged() -> None:
        for store in stores:
            ours(query, store)

    def whole() -> None:
        for store in stores:
            varlen(query, store.keys[: rows * held], store.values[: rows * held])

    return paged, whole


def _varlen(device: torch.device, count: int, rows: int, held: int) -> Callable[..., object]:
    from torch.nn.attention.varlen import varlen_attn

    starts = torch.arange(rows + 1, device=device, dtype=torch.int32)
    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    options |= {"enable_gqa": True} if "enable_gqa" in known else {}
    return lambda query, keys, values: varlen_attn(
        query, keys, values, starts * count, starts * held, count, held, **options
    )


def _block_table(device: torch.device) -> float:
    """1 if `varlen_attn` attends over pages of ours, 0.5 if only over other ones, 0 if it has no table of them."""
    from torch.nn.attention.varlen import varlen_attn

    if "block_table" not in inspect.signature(varlen_attn).parameters:
        return 0.0
    query = torch.randn((1, HEADS, WIDTH), device=device, dtype=torch.bfloat16)
    pool = torch.randn((4, PAGE_TOKENS, KV_HEADS, WIDTH), device=device, dtype=torch.bfloat16)
    table, used = (torch.full(shape, 1, device=device, dtype=torch.int32) for shape in ((1, 1), (1,)))
    starts = torch.arange(2, device=device, dtype=torch.int32)
    more: dict[str, Any] = {"enable_gqa": True, "seqused_k": used, "block_table": table}
    try:
        varlen_attn(query, pool, pool, starts, None, 1, PAGE_TOKENS, **more)
    except RuntimeError as error:
        tell(f"  varlen_attn over pages of {PAGE_TOKENS} tokens: {str(error).splitlines()[0]}")
        return 0.5
    return 1.0
