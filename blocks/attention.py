"""Owns attention over paged KV behind transformers' attention interface; must not know families or checkpoints.

A block gets a `PagedCache` where it expects transformers' cache: `update` writes new keys and values into their pages.
The block then calls `paged_attention` through the library's interface with the same object as the keyword `paged`, and
it reads each row's pages: what the block hands over as keys and values is the new tokens' alone and is not looked at.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from shoal.blocks.kernels import has_kernels
from shoal.blocks.kv import from_int8
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import ModuleType

    from shoal.blocks.batch import Batch, Read
    from shoal.blocks.kv import BlockKV, KVPool

IMPLEMENTATION = "shoal_paged"
MOST_BYTES = 1 << 27  # of keys and values that rows of one token are given copies of at a time
_SCORES = 1 << 25  # elements of one tile of attention scores where they must be built: 128 MiB in float32

# Left to itself, torch prefers cuDNN on an H100. cuDNN builds a plan for each new length, which takes tens of
# milliseconds, and every decode step has a new length: it goes before the scores in full, and after all else.
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]


def kernel_order(device: torch.device) -> AbstractContextManager[None]:
    """Within it, attention on a CUDA device prefers kernels that take any length as it comes."""
    return sdpa_kernel(_KERNELS, set_priority=True) if device.type == "cuda" else nullcontext()


@dataclass(frozen=True, slots=True)
class Rules:
    """How scores become weights: `scale`, `softcap` and `sinks`.

    `softcap` is Gemma 2's, cap * tanh(scores / cap) (arXiv:2408.00118); `sinks` are gpt-oss's: one more logit a head,
    which takes weight and gives no value.
    """

    scale: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def needs_scores(self) -> bool:
        return self.softcap is not None or self.sinks is not None


class PagedCache:
    """The KV of one forward: stands where a block expects transformers' cache."""

    __slots__ = ("batch", "kernels", "pool")

    def __init__(self, pool: KVPool, batch: Batch) -> None:
        self.pool, self.batch = pool, batch
        self.kernels = _kernels() if has_kernels(pool.device, pool.dtype) else None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, block: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write `[1, kv_heads, T, width]` into the batch's slots; hand back the same."""
        self.pool.block(block).write(self.batch.write, keys[0].transpose(0, 1), values[0].transpose(0, 1))
        return keys, values


def paged_attention(module: torch.nn.Module, query: torch.Tensor, *_: Any, **given: Any) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query `[1, heads, T, width]` to output `[1, T, heads, width]`."""
    cache: PagedCache = given["paged"]
    scale = given.get("scaling")
    rules = Rules(query.shape[-1] ** -0.5 if scale is None else scale, given.get("softcap"), given.get("s_aux"))
    kv = cache.pool.block(int(module.layer_idx))  # type: ignore[arg-type]
    kernels = cache.kernels if cache.kernels is not None and cache.kernels.takes(query, kv) else None
    return attend(query, kv, cache.batch, given.get("sliding_window"), rules, kernels), None


def _kernels() -> ModuleType:
    """Our own kernels are imported for a GPU alone: they need Triton."""
    from shoal.blocks.kernels import paged

    return paged


def attend(
    query: torch.Tensor,
    kv: BlockKV,
    batch: Batch,
    window: int | None,
    rules: Rules,
    kernels: ModuleType | None = None,
) -> torch.Tensor:
    """Each row's tokens against that row's pages: `[1, heads, T, width]` to `[1, T, heads, width]`.

    On a CPU every row is a kernel call on views of its pages. On a GPU, where calls cost more than copies, rows of one
    token share a call: of `kernels` (blocks.kernels.paged), else of torch, over copies of the pages of rows of about
    one length.
    """
    reads = batch.reads(window)
    if len(reads) == 1:
        return _attend_row(query, kv, reads[0], rules).transpose(1, 2)
    together = batch.gathers
    if batch.decodes_only and not together and not rules.needs_scores:
        return _attend_tokens(query, kv, reads, rules)
    out = query.new_empty((1, query.shape[2], query.shape[1], kv.values.shape[-1]))
    if together:
        (kernels.attend_together if kernels is not None else _attend_padded)(query, kv, batch, (window, rules, out))
    for read in reads:
        if read.count > 1 or not together:
            part = query[:, :, read.first : read.first + read.count]
            out[:, read.first : read.first + read.count] = _attend_row(part, kv, read, rules).transpose(1, 2)
    return out


def _attend_row(query: torch.Tensor, kv: BlockKV, read: Read, rules: Rules) -> torch.Tensor:
    keys, values = _seen(kv, read, query.dtype)
    if rules.needs_scores:
        return _by_scores(query, (keys, values), _mask_of(read, query.device), rules)
    if read.count == 1:
        return _one_token(query, (keys, values), None, rules)
    return scaled_dot_product_attention(
        query, keys, values, attn_mask=read.mask, is_causal=read.causal, scale=rules.scale, enable_gqa=True
    )


def _seen(kv: BlockKV, read: Read, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys and values that a row reads, `[1, kv_heads, L, width]` in `dtype`."""
    keys, values = (
        _by_head(pool, read) if scale is None else from_int8(_by_head(pool, read), _by_head(scale[..., None], read))
        for pool, scale in kv.pairs
    )
    return keys.to(dtype), values.to(dtype)


def _by_head(pool: torch.Tensor, read: Read) -> torch.Tensor:
    return read.gather(pool.transpose(0, 1)[None])


def _attend_tokens(query: torch.Tensor, kv: BlockKV, reads: tuple[Read, ...], rules: Rules) -> torch.Tensor:
    """Rows of one token each, with as few operations as can be: on a small model their number is the cost."""
    tokens = query[0].transpose(0, 1).reshape(query.shape[2], kv.keys.shape[1], -1, query.shape[3])
    keys, values = (pool.transpose(0, 1)[None] for pool in (kv.keys, kv.values))
    done = []
    for token, read in zip(torch.split(tokens, 1), reads, strict=True):
        seen = (read.gather(keys), read.gather(values)) if kv.key_scale is None else _seen(kv, read, query.dtype)
        if seen[0].dtype != query.dtype:
            seen = seen[0].to(query.dtype), seen[1].to(query.dtype)
        done.append(scaled_dot_product_attention(token, *seen, scale=rules.scale))
    return torch.cat(done).view(1, query.shape[2], query.shape[1], -1)


def _attend_padded(
    query: torch.Tensor, kv: BlockKV, batch: Batch, rest: tuple[int | None, Rules, torch.Tensor]
) -> None:
    """Rows of one token each, those of about one length together, as long as the longest of them. So many at a time
    that the copies of their KV stay small."""
    window, rules, out = rest
    each = 2 * kv.keys[0].numel() * torch.float32.itemsize
    attend = _by_scores if rules.needs_scores else _one_token
    for read in batch.padded_reads(window, MOST_BYTES // each):
        n, width = read.mask.shape[0], read.mask.shape[-1]
        keys, values = (
            part.view(n, width, *part.shape[1:]).transpose(1, 2).to(query.dtype) for part in kv.select(read.slots)
        )
        tokens = query[0].index_select(1, read.tokens).transpose(0, 1)[:, :, None]
        out[0].index_copy_(0, read.tokens, attend(tokens, (keys, values), read.mask, rules)[:, :, 0])


def _one_token(
    query: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor | None, rules: Rules
) -> torch.Tensor:
    """`[B, heads, 1, width]`: the heads that share keys become queries of one head, so that nothing is repeated."""
    n, heads, _, width = query.shape
    grouped = query.reshape(n, kv[0].shape[1], -1, width)
    out = scaled_dot_product_attention(grouped, *kv, attn_mask=mask, scale=rules.scale)
    return out.reshape(n, heads, 1, -1)


def _mask_of(read: Read, device: torch.device) -> torch.Tensor | None:
    if read.causal:
        return torch.ones(read.count, read.count, dtype=torch.bool, device=device).tril()
    return read.mask


def _by_scores(
    query: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor | None, rules: Rules
) -> torch.Tensor:
    """Attention with the scores built, in tiles of queries: for rules that no fused kernel knows."""
    n, heads, count, _ = query.shape
    tile = max(1, _SCORES // (n * heads * kv[0].shape[2]))
    if count <= tile:
        return _tile(query, kv, mask, rules)
    starts = range(0, count, tile)
    parts = [
        _tile(query[:, :, i : i + tile], kv, None if mask is None else mask[..., i : i + tile, :], rules)
        for i in starts
    ]
    return torch.cat(parts, dim=2)


def _tile(
    query: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor | None, rules: Rules
) -> torch.Tensor:
    n, heads, count, width = query.shape
    keys, values = (part[:, :, None] for part in kv)
    grouped = query.reshape(n, kv[0].shape[1], -1, count, width)
    scores = torch.matmul(grouped, keys.transpose(-1, -2)) * rules.scale
    if rules.softcap is not None:
        scores = torch.tanh(scores / rules.softcap) * rules.softcap
    if mask is not None:
        scores = scores.masked_fill(~(mask[:, :, None] if mask.dim() == 4 else mask), torch.finfo(scores.dtype).min)
    weights = _weigh(scores, rules.sinks)
    return torch.matmul(weights.to(values.dtype), values).reshape(n, heads, count, -1)


def _weigh(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Softmax over the last axis in float32, with the sinks' share taken out."""
    if sinks is None:
        return torch.softmax(scores, dim=-1, dtype=torch.float32)
    n, groups, shared, count, _ = scores.shape
    column = sinks.to(scores.dtype).view(1, groups, shared, 1, 1).expand(n, -1, -1, count, 1)
    return torch.softmax(torch.cat([scores, column], dim=-1), dim=-1, dtype=torch.float32)[..., :-1]


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, paged_attention)
