"""Owns the storage of keys and values in fixed pages; must not know who owns which page, nor what a block computes.

A page is PAGE_TOKENS token slots in every block of a span; a slot's index in a block's tensors is
`page * PAGE_TOKENS + position % PAGE_TOKENS`. Pages of fixed size are the idea of vLLM's PagedAttention
(Kwon et al., 2023, arXiv:2309.06180).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from shoal.blocks.spec import ModelSpec

PAGE_TOKENS = 16


class KVPool:
    """Keys and values of `n_pages` pages for each block of a span.

    `keys(block)` and `values(block)` are `[n_pages * PAGE_TOKENS, kv_heads, head_dim]`, so that consecutive pages are
    one view. On a CPU a head's slots lie together in memory: a row of 512 tokens is then read a third faster.
    Zeroed at the start: a slot that nobody wrote must hold numbers, not whatever the memory held before.
    """

    def __init__(
        self, spec: ModelSpec, blocks: range, n_pages: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        if n_pages < 1:
            raise ValueError("a KV pool needs at least one page")
        self.blocks, self.n_pages = blocks, n_pages
        self.device, self.dtype = torch.device(device), dtype
        self._keys = {i: self._empty(spec, i) for i in blocks}
        self._values = {i: self._empty(spec, i) for i in blocks}

    def keys(self, block: int) -> torch.Tensor:
        """Keys of an absolute block index, `[slots, kv_heads, head_dim]`."""
        return self._keys[block]

    def values(self, block: int) -> torch.Tensor:
        """Values of an absolute block index, `[slots, kv_heads, head_dim]`."""
        return self._values[block]

    @property
    def n_slots(self) -> int:
        return self.n_pages * PAGE_TOKENS

    def _empty(self, spec: ModelSpec, block: int) -> torch.Tensor:
        heads, width = spec.kv_heads[block], spec.head_dim[block]
        if self.device.type == "cpu":
            return torch.zeros((heads, self.n_slots, width), dtype=self.dtype).transpose(0, 1)
        return torch.zeros((self.n_slots, heads, width), device=self.device, dtype=self.dtype)


def kv_bytes_per_token(spec: ModelSpec, blocks: range, dtype: torch.dtype) -> int:
    """Bytes of KV that one token takes in the blocks of a span."""
    return sum(2 * spec.kv_heads[i] * spec.head_dim[i] for i in blocks) * dtype.itemsize
