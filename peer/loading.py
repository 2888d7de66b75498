"""A peer's model and its room for it: reads the shape, measures memory, has it decided what fits, loads the span.

Runs in a thread beside the event loop; knows no network.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from shoal.blocks.checkpoint import resolve
from shoal.blocks.devices import compute_on, device_memory, host_memory
from shoal.blocks.hub_progress import counted, downloads
from shoal.blocks.kv import PAGE_TOKENS, kv_bytes_per_token
from shoal.blocks.memory import block_bytes, block_shapes, workspace_bytes
from shoal.blocks.span import SpanOptions, load_span
from shoal.blocks.spec import spec_of
from shoal.peer.config import PeerError
from shoal.peer.engine import STEP_TOKENS, STEP_TOKENS_CUDA
from shoal.peer.fit import Figures, Fit, Wishes, fit
from shoal.peer.matching import check_invited

if TYPE_CHECKING:
    from shoal.blocks.checkpoint import Checkpoint
    from shoal.blocks.span import Span
    from shoal.blocks.spec import ModelSpec
    from shoal.peer.config import PeerConfig

logger = logging.getLogger("shoal.peer")

WARM_ROWS, WARM_TOKENS = 32, 1024  # decode steps up to which a GPU is made ready before the first user comes

# What a GPU needs beside weights, KV and activations: kernels that are loaded when they are first used, cuBLAS's
# workspaces, what the choice of kernels is measured in, the pools of CUDA graphs; 0.9 GB were measured on an H100. Then
# a part of the whole, for what the allocator cannot use and for the desktop that grows.
GPU_BYTES = 1024 * 2**20
GPU_PART = 50
# The context, which is there when free memory is asked for, so that it counts towards --vram alone. On an H100 the
# driver named 526 MiB for a process that had asked for nothing yet; smaller cards' contexts are smaller.
CUDA_CONTEXT_BYTES = 528 * 2**20
# On a CPU: the allocator's arenas, and a part of the whole that stays with whoever owns the machine.
CPU_BYTES = 256 * 2**20
CPU_PART = 16
SESSIONS = 64  # of GPU_CONTEXT tokens each: KV for more than these would lie idle
GPU_CONTEXT = 8192
CPU_SESSIONS = 16  # a CPU decodes for no more at a bearable speed
CPU_CONTEXT = 2048


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint of which only config and index may be here, and its shape."""

    checkpoint: Checkpoint
    spec: ModelSpec


def open_model(config: PeerConfig) -> Model:
    """Read a model's config. Errors: `PeerError` for another model than the invite's and for blocks that it has not,
    `BlocksError`."""
    check_invited(config)
    checkpoint = resolve(config.model, wanted=lambda _name: False, revision=config.revision)
    spec = spec_of(checkpoint)
    if config.blocks is not None and not 0 <= config.blocks.start < config.blocks.stop <= spec.n_blocks:
        wanted = f"{config.blocks.start}:{config.blocks.stop}"
        raise PeerError(f"{config.model} has blocks 0:{spec.n_blocks}; {wanted} is no span of it")
    return Model(checkpoint, spec)


def open_and_fit(config: PeerConfig) -> tuple[Model, Fit]:
    """A model's shape, and what of it this machine has room for. Errors: as `open_model` and `fit_model`."""
    model = open_model(config)
    return model, fit_model(config, model)


class Terms(Protocol):
    """What of a volunteer's wishes decides how much memory blocks take and leave: see `PeerConfig`."""

    @property
    def quantization(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str | None: ...
    @property
    def kv_dtype(self) -> str: ...
    @property
    def vram(self) -> int | None: ...


def fit_model(config: PeerConfig, model: Model) -> Fit:
    """What of the model this machine has room for now. Errors: `NoMemory`."""
    found = fit(
        figures_of(config, model.spec),
        Wishes(
            config.vram, config.host_memory, config.blocks, config.num_blocks, config.kv_tokens, offload=config.offload
        ),
    )
    logger.info("%s", found.why)
    return found


def memory_of(config: PeerConfig, model: Model, room: Fit, blocks: range) -> tuple[int, int]:
    """Bytes that these blocks take: (weights, KV for all the tokens that there is room for)."""
    figures = figures_of(config, model.spec)
    weights = sum(figures.weights[blocks.start : blocks.stop])
    return weights, room.kv_tokens * sum(figures.kv[blocks.start : blocks.stop])


def fetch(config: PeerConfig, model: Model, blocks: range) -> Checkpoint:
    """The checkpoint with the shards that hold these blocks, fetched if need be. Errors: `BlocksError`."""
    names = model.checkpoint.tensor_names()
    needed = {name for block in blocks for name in model.spec.family.block_tensors(names, block)}
    with downloads() as progress:
        return resolve(config.model, wanted=needed.__contains__, revision=model.checkpoint.revision, progress=progress)


def load(config: PeerConfig, model: Model, blocks: range, room: Fit) -> Span:
    """Fetch the shards that hold these blocks if need be, and load them. Errors: `BlocksError`."""
    checkpoint = fetch(config, model, blocks)
    logger.info("loading blocks %d:%d of %s as %s", blocks.start, blocks.stop, checkpoint.name, config.quantization)
    options = SpanOptions(
        kv_pages=-(-room.kv_tokens // PAGE_TOKENS), quantization=config.quantization, device=config.device,
        dtype=dtype_of(config, model.spec), kv_dtype=config.kv_dtype, host_blocks=room.streamed,
    )  # fmt: skip
    compute_on(torch.device(config.device))
    with counted(f"loading blocks {blocks.start}:{blocks.stop}", len(blocks)) as on_block:
        span = load_span(checkpoint, blocks, options, on_block)
    if options.device.startswith("cuda"):
        logger.info("making its kernels ready (some 20 s the first time on a GPU, a second later on)")
    make_ready(span, config.max_batch or WARM_ROWS)
    return span


def make_ready(span: Span, max_batch: int = WARM_ROWS) -> None:
    """Let a GPU compile, choose and capture what serving up to `max_batch` sessions at once will need."""
    span.warm_up(min(WARM_ROWS, max_batch), WARM_TOKENS, STEP_TOKENS_CUDA)


def figures_of(config: Terms, spec: ModelSpec) -> Figures:
    """The machine as it is now, and the model on it."""
    device, dtype = torch.device(config.device), dtype_of(config, spec)
    shapes = block_shapes(spec)
    memory, on_gpu = device_memory(device), device.type == "cuda"
    tokens = STEP_TOKENS_CUDA if on_gpu else STEP_TOKENS
    workspace = max(workspace_bytes(shape, config.quantization, dtype, tokens) for shape in shapes)
    own = GPU_BYTES + memory.total // GPU_PART if on_gpu else CPU_BYTES + memory.total // CPU_PART
    if config.vram is not None:
        own = min(own, GPU_BYTES if on_gpu else CPU_BYTES)  # the rest of the device is left alone as it is
    useful = (
        SESSIONS * min(spec.max_position, GPU_CONTEXT) if on_gpu else CPU_SESSIONS * min(spec.max_position, CPU_CONTEXT)
    )
    return Figures(
        weights=tuple(block_bytes(shape, config.quantization, dtype) for shape in shapes),
        kv=tuple(kv_bytes_per_token(spec, range(i, i + 1), dtype, config.kv_dtype) for i in range(spec.n_blocks)),
        reserve=own + workspace, free=memory.free, host_free=host_memory().free, shared=not on_gpu,
        most_tokens=max(useful, 8192), page_tokens=PAGE_TOKENS, context=CUDA_CONTEXT_BYTES if on_gpu else 0,
    )  # fmt: skip


def dtype_of(config: Terms, spec: ModelSpec) -> torch.dtype:
    """What is computed in."""
    found: torch.dtype = getattr(torch, config.dtype) if config.dtype else spec.dtype
    return found
