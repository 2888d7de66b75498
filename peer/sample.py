"""One block of a model with made-up weights, timed on this machine: what can be measured before anything is fetched.

The times of a block do not depend on its weights, so these are those that the model itself would have here.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, cast

import torch
from shoal.blocks.kv import PAGE_TOKENS
from shoal.blocks.parts import library
from shoal.blocks.span import SpanOptions, load_span
from shoal.dht.threads import in_thread
from shoal.peer.engine import LAST_STEP_S, DeviceEngine
from shoal.peer.loading import dtype_of
from shoal.peer.measure import measure
from shoal.routing.knowledge import CHUNK_MEASURED, Speed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shoal.blocks.checkpoint import Checkpoint
    from shoal.blocks.spec import ModelSpec
    from shoal.peer.loading import Terms

TILE = 1 << 16  # numbers that are drawn; a matrix repeats them, since drawing billions takes minutes
SPREAD = 0.02  # of weights, as in trained models


class MadeUp:
    """A checkpoint of the first block of a model, and of nothing else."""

    def __init__(self, config: Mapping[str, Any], spec: ModelSpec) -> None:
        self.config, self.revision = dict(config), ""
        self._dtype = spec.dtype
        own = copy.deepcopy(spec.config)
        own._attn_implementation = "sdpa"
        with torch.device("meta"):
            block = getattr(library(spec.family), spec.family.block)(own, layer_idx=0)
        prefix = spec.family.block_prefix((), 0)
        self._shapes = {f"{prefix}{name}": tuple(held.shape) for name, held in block.named_parameters()}

    def tensor_names(self) -> frozenset[str]:
        return frozenset(self._shapes)

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        tile = (torch.randn(TILE, generator=torch.Generator().manual_seed(0)) * SPREAD).to(self._dtype)
        return {name: _filled(tile, self._shapes[name]) for name in names}


async def time_block(config: Mapping[str, Any], spec: ModelSpec, terms: Terms) -> Speed:
    """Seconds per token of one block: alone, and in a prompt. Errors: `BlocksError`, `EngineFault`."""
    dtype = dtype_of(terms, spec)
    options = SpanOptions(
        kv_pages=-(-CHUNK_MEASURED // PAGE_TOKENS) + 1, quantization=terms.quantization, device=terms.device,
        dtype=dtype, kv_dtype=terms.kv_dtype,
    )  # fmt: skip
    made_up = cast("Checkpoint", MadeUp(config, spec))
    engine = DeviceEngine(await in_thread(load_span, made_up, range(1), options), PAGE_TOKENS)
    try:
        found = await measure(engine, str(dtype).removeprefix("torch."))
    finally:
        engine.close(LAST_STEP_S)
    return Speed(found.decode_s, found.prefill_s)


def _filled(tile: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    count = math.prod(shape)
    return tile.repeat(-(-count // TILE))[:count].reshape(shape)
