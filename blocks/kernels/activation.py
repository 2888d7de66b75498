"""Owns the gated activation, `act(gate) * up`, where a matrix's own kernel leaves it out; must not know matrices."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024


@triton.jit
def tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def activated(x, KIND: tl.constexpr):
    """`x` in float32 through "silu", "gelu_tanh" or "gelu" (Hendrycks and Gimpel, 2016, arXiv:1606.08415)."""
    if KIND == "silu":
        return x * tl.sigmoid(x)
    if KIND == "gelu_tanh":
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit(do_not_specialize=["part_stride"])
def _gate(
    x_ptr,
    out_ptr,
    part_stride,
    row_stride,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keep = at < WIDTH
    start = x_ptr + row * row_stride
    gate = tl.load(start + at, mask=keep, other=0.0).to(tl.float32)
    up = tl.load(start + WIDTH + at, mask=keep, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        more = start + part * part_stride
        gate += tl.load(more + at, mask=keep, other=0.0).to(tl.float32)
        up += tl.load(more + WIDTH + at, mask=keep, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * WIDTH + at, (activated(gate, KIND) * up).to(out_ptr.dtype.element_ty), mask=keep)


def gated_activation(gate_up: torch.Tensor, kind: str, dtype: torch.dtype) -> torch.Tensor:
    """`act(gate) * up`, `[T, F]` in `dtype`, of `[T, 2 F]` (gate first) or of float32 partial sums `[S, T, 2 F]`.

    kind: "silu", "gelu_tanh" or "gelu". The last axis is contiguous; arithmetic is in float32.
    """
    tokens, width = gate_up.shape[-2], gate_up.shape[-1] // 2
    out = torch.empty((tokens, width), device=gate_up.device, dtype=dtype)
    parts, part_stride = (gate_up.shape[0], gate_up.stride(0)) if gate_up.dim() == 3 else (1, 0)
    _gate[(tokens, triton.cdiv(width, _BLOCK))](
        gate_up, out, part_stride, gate_up.stride(-2), PARTS=parts, WIDTH=width, KIND=kind, BLOCK=_BLOCK
    )
    return out
