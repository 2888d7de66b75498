"""Owns the kernel between the QKV matrix and attention: head norms, rotary embeddings, KV into its slots.

Must not know pages or rows: it is told one slot per token. Rotary embeddings are Su et al., 2021 (arXiv:2104.09864).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from shoal.blocks.kernels.early import early, wait_for_inputs

if TYPE_CHECKING:
    from shoal.blocks.kv import BlockKV
    from shoal.blocks.structure import RMSNorm

_FEW = 64  # tokens up to which programs take few heads and many threads, so that none waits long


@dataclass(frozen=True)
class HeadShape:
    """Heads of a block. `rotary_dim`: how many of a head's first numbers are rotated, in pairs that are neighbours
    (`interleaved`) or half of `rotary_dim` apart."""

    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    interleaved: bool = False


def cos_sin(positions: torch.Tensor, inv_freq: torch.Tensor, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines `[T, R / 2]` in float32 for positions `[T]`, frequencies `[R / 2]` and their common factor."""
    shape = len(positions), len(inv_freq)
    cos, sin = (torch.empty(shape, device=inv_freq.device, dtype=torch.float32) for _ in range(2))
    _cos_sin[(shape[0],)](
        positions, inv_freq, cos, sin, scaling, WIDTH=shape[1], BLOCK=triton.next_power_of_2(shape[1]), num_warps=1
    )
    return cos, sin


@triton.jit
def _cos_sin(positions_ptr, inv_freq_ptr, cos_ptr, sin_ptr, scaling, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    keep = column < WIDTH
    angle = tl.load(positions_ptr + token).to(tl.float32) * tl.load(inv_freq_ptr + column, mask=keep, other=0.0)
    tl.store(cos_ptr + token * WIDTH + column, tl.cos(angle) * scaling, mask=keep)
    tl.store(sin_ptr + token * WIDTH + column, tl.sin(angle) * scaling, mask=keep)


@triton.jit
def _summed(start, at, keep, part_stride, PARTS: tl.constexpr):
    x = tl.load(start + at, mask=keep, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        x += tl.load(start + part * part_stride + at, mask=keep, other=0.0).to(tl.float32)
    return x


@triton.jit
def _rounded(x):
    """To the nearest whole number, ties to even, for |x| < 2^22: beyond 2^23, float32 has no fractions."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _put(x, pool, scales, column, keep, present, SCALED: tl.constexpr):
    """Heads `x [BLOCK_HEADS, BLOCK_DIM]` to where they are kept, as int8 with their scales where SCALED."""
    if SCALED:
        scale = (tl.max(tl.abs(x), 1) / 127.0).to(tl.float16)
        tl.store(scales, scale, mask=present)
        step = scale.to(tl.float32)[:, None]
        x = tl.where(step > 0, x / tl.where(step > 0, step, 1.0), 0.0)
        x = tl.minimum(tl.maximum(_rounded(x), -127.0), 127.0)
    tl.store(pool[:, None] + column[None, :], x.to(pool.dtype.element_ty), mask=keep)


@triton.jit
def _turned(
    start,
    head,
    column,
    keep,
    cos_ptr,
    sin_ptr,
    norm_ptr,
    eps,
    part_stride,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,
    PLUS_ONE: tl.constexpr,
):
    """Heads of one token, normed and rotated. NORM: 0 none, 1 each head, 2 all heads together.

    A number's partner in its pair is read again (from the nearest cache) rather than moved between threads.
    """
    at = head[:, None] * DIM + column[None, :]
    x = _summed(start, at, keep, part_stride, PARTS)
    half: tl.constexpr = ROTARY // 2
    if INTERLEAVED:
        partner, frequency, second = column ^ 1, column // 2, (column % 2) == 1
    else:
        second = column >= half
        partner = tl.where(second, column - half, column + half)
        frequency = tl.where(second, column - half, column)
    rotates = column < ROTARY
    partner = tl.where(rotates, partner, column)
    other = _summed(start, head[:, None] * DIM + partner[None, :], keep, part_stride, PARTS)
    if NORM > 0:
        if NORM == 1:
            mean = tl.sum(x * x, 1) / DIM
            own, of_partner = column[None, :], partner[None, :]
        else:
            square = tl.zeros([BLOCK_DIM], tl.float32)
            for i in range(HEADS):
                part = _summed(start, i * DIM + column, column < DIM, part_stride, PARTS)
                square += part * part
            mean = tl.zeros_like(head).to(tl.float32) + tl.sum(square, 0) / (HEADS * DIM)
            own, of_partner = at, head[:, None] * DIM + partner[None, :]
        factor = tl.rsqrt(mean + eps)[:, None]
        weight = tl.load(norm_ptr + own, mask=keep, other=0.0).to(tl.float32)
        weight_of_partner = tl.load(norm_ptr + of_partner, mask=keep, other=0.0).to(tl.float32)
        if PLUS_ONE:
            weight += 1.0
            weight_of_partner += 1.0
        x, other = x * factor * weight, other * factor * weight_of_partner
    cos = tl.load(cos_ptr + frequency, mask=rotates, other=1.0)
    sin = tl.load(sin_ptr + frequency, mask=rotates, other=0.0)
    return x * cos[None, :] + other * tl.where(second, sin, -sin)[None, :]


@triton.jit(do_not_specialize=["part_stride"])
def _rope_and_store(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    slots_ptr,
    q_ptr,
    keys_ptr,
    values_ptr,
    key_scale_ptr,
    value_scale_ptr,
    q_norm_ptr,
    k_norm_ptr,
    q_eps,
    k_eps,
    part_stride,
    row_stride,
    slot_stride,
    head_stride,
    slot_scale_stride,
    head_scale_stride,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    Q_PLUS_ONE: tl.constexpr,
    K_PLUS_ONE: tl.constexpr,
    SCALED: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One token and up to BLOCK_HEADS heads a program: first those of queries, then keys, then values."""
    wait_for_inputs(EARLY)
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    q_groups: tl.constexpr = (HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    kv_groups: tl.constexpr = (KV_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    column = tl.arange(0, BLOCK_DIM)
    in_group = tl.arange(0, BLOCK_HEADS)
    start = qkv_ptr + token * row_stride
    cos_ptr += token * (ROTARY // 2)
    sin_ptr += token * (ROTARY // 2)
    if group < q_groups:
        head = group * BLOCK_HEADS + in_group
        keep = (head < HEADS)[:, None] & (column < DIM)[None, :]
        x = _turned(
            start, head, column, keep, cos_ptr, sin_ptr, q_norm_ptr, q_eps, part_stride, PARTS,
            HEADS, DIM, BLOCK_DIM, ROTARY, INTERLEAVED, Q_NORM, Q_PLUS_ONE,
        )  # fmt: skip
        target = q_ptr + token * (HEADS * DIM) + head[:, None] * DIM + column[None, :]
        tl.store(target, x.to(q_ptr.dtype.element_ty), mask=keep)
    else:
        slot = tl.load(slots_ptr + token).to(tl.int64)
        head = (group - q_groups) % kv_groups * BLOCK_HEADS + in_group
        present = head < KV_HEADS
        keep = present[:, None] & (column < DIM)[None, :]
        pool = slot * slot_stride + head.to(tl.int64) * head_stride
        scales = slot * slot_scale_stride + head.to(tl.int64) * head_scale_stride
        if group < q_groups + kv_groups:
            x = _turned(
                start + HEADS * DIM, head, column, keep, cos_ptr, sin_ptr, k_norm_ptr, k_eps, part_stride, PARTS,
                KV_HEADS, DIM, BLOCK_DIM, ROTARY, INTERLEAVED, K_NORM, K_PLUS_ONE,
            )  # fmt: skip
            _put(x, keys_ptr + pool, key_scale_ptr + scales, column, keep, present, SCALED)
        else:
            at = (HEADS + KV_HEADS) * DIM + head[:, None] * DIM + column[None, :]
            x = _summed(start, at, keep, part_stride, PARTS)
            _put(x, values_ptr + pool, value_scale_ptr + scales, column, keep, present, SCALED)


def rope_and_store(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    kv: BlockKV,
    shape: HeadShape,
    *,
    q_norm: RMSNorm | None,
    k_norm: RMSNorm | None,
    dtype: torch.dtype,
    starts_early: bool = False,
) -> torch.Tensor:
    """Norm and rotate queries and keys, write keys and values into `slots [T]` int32; returns queries `[T, heads, D]`.

    qkv: `[T, (heads + 2 kv_heads) D]`, or float32 partial sums of it `[S, T, ...]`, last axis contiguous. cos, sin: as
    `cos_sin` gives them. A norm's weight has D numbers (each head by itself) or all heads' (all of them together).
    """
    tokens = qkv.shape[-2]
    out = torch.empty((tokens, shape.heads, shape.head_dim), device=qkv.device, dtype=dtype)
    parts, part_stride = (qkv.shape[0], qkv.stride(0)) if qkv.dim() == 3 else (1, 0)
    few = tokens <= _FEW
    at_once = min(triton.next_power_of_2(shape.kv_heads), 4 if few else 8)
    groups = triton.cdiv(shape.heads, at_once) + 2 * triton.cdiv(shape.kv_heads, at_once)
    scales = kv.key_scale if kv.key_scale is not None else slots
    _rope_and_store[(tokens, groups)](
        qkv,
        cos,
        sin,
        slots,
        out,
        kv.keys,
        kv.values,
        scales,
        kv.value_scale if kv.value_scale is not None else slots,
        out if q_norm is None else q_norm.weight,
        out if k_norm is None else k_norm.weight,
        0.0 if q_norm is None else q_norm.eps,
        0.0 if k_norm is None else k_norm.eps,
        part_stride,
        qkv.stride(-2),
        *strides_of(kv),
        PARTS=parts,
        HEADS=shape.heads,
        KV_HEADS=shape.kv_heads,
        DIM=shape.head_dim,
        BLOCK_HEADS=at_once,
        BLOCK_DIM=triton.next_power_of_2(shape.head_dim),
        ROTARY=shape.rotary_dim,
        INTERLEAVED=shape.interleaved,
        Q_NORM=_kind(q_norm, shape.head_dim),
        K_NORM=_kind(k_norm, shape.head_dim),
        Q_PLUS_ONE=q_norm is not None and q_norm.plus_one,
        K_PLUS_ONE=k_norm is not None and k_norm.plus_one,
        SCALED=kv.key_scale is not None,
        num_warps=8 if few else 2,
        **early(qkv.device, starts_early),
    )
    return out


def strides_of(kv: BlockKV) -> tuple[int, int, int, int]:
    """A slot's and a head's stride in keys and values, and in their scales."""
    slot, head = (0, 0) if kv.key_scale is None else kv.key_scale.stride()
    return kv.keys.stride(0), kv.keys.stride(1), slot, head


def _kind(norm: RMSNorm | None, head_dim: int) -> int:
    return 0 if norm is None else 1 if norm.weight.numel() == head_dim else 2
