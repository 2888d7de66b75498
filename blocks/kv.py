"""Owns the storage of keys and values in fixed pages; must not know who owns which page, nor what a block computes.

A page is PAGE_TOKENS token slots in every block of a span; a slot's index in a block's tensors is
`page * PAGE_TOKENS + position % PAGE_TOKENS`. Pages of fixed size are the idea of vLLM's PagedAttention
(Kwon et al., 2023, arXiv:2309.06180).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from shoal.blocks.choices import KV_DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shoal.blocks.spec import ModelSpec

PAGE_TOKENS = 16
_INT8_MAX = 127
_PIECE_BYTES, _LEAST_BYTES = 1 << 22, 1 << 16
_SCALE = torch.float16


@dataclass(frozen=True, slots=True)
class BlockKV:
    """One block's KV: `keys` and `values [slots, kv_heads, head_dim]`, the last page's slots being scratch.

    As int8 they come with `key_scale` and `value_scale [slots, kv_heads]` in float16: a number is int8 * scale.
    """

    keys: torch.Tensor
    values: torch.Tensor
    key_scale: torch.Tensor | None = None
    value_scale: torch.Tensor | None = None

    @property
    def pairs(self) -> tuple[tuple[torch.Tensor, torch.Tensor | None], ...]:
        """Keys and values, each with its scale."""
        return (self.keys, self.key_scale), (self.values, self.value_scale)

    def write(self, slots: slice | torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put new keys and values `[T, kv_heads, head_dim]` of any float dtype into slots."""
        for (pool, scale), new in zip(self.pairs, (keys, values), strict=True):
            if scale is None:
                _put(pool, slots, new)
                continue
            stored, new_scale = to_int8(new)
            _put(pool, slots, stored)
            _put(scale, slots, new_scale)

    def select(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of keys and values at `slots [n]`: `[n, kv_heads, head_dim]`, in the pool's dtype or float32."""
        keys, values = (
            pool.index_select(0, slots)
            if scale is None
            else from_int8(pool.index_select(0, slots), scale.index_select(0, slots)[..., None])
            for pool, scale in self.pairs
        )
        return keys, values


@dataclass(frozen=True, slots=True)
class HostPages:
    """The contents of `n_pages` pages in a pool's blocks: `n_bytes` bytes of host memory, one piece after the other."""

    n_pages: int
    n_bytes: int
    pieces: tuple[torch.Tensor, ...]
    starts: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", tuple(accumulate(map(len, self.pieces), initial=0))[:-1])

    def spans(self, start: int, size: int) -> Iterator[torch.Tensor]:
        """The bytes `start` to `start + size`, as views of the pieces that hold them."""
        index = bisect_right(self.starts, start) - 1
        while size > 0:
            at = start - self.starts[index]
            part = self.pieces[index][at : at + size]
            yield part
            start, size, index = start + len(part), size - len(part), index + 1


class KVPool:
    """Keys and values of `n_pages` pages for each block of a span, and one page more, `scratch_page`.

    `block(i)` has one row per slot, so that consecutive pages are one view. On a CPU a head's slots lie together in
    memory: a row of 512 tokens is then read a third faster. The scratch page takes what padding writes.
    Zeroed at the start: a slot that nobody wrote must hold numbers, not whatever the memory held before.

    `kind` is one of blocks.choices.KV_DTYPES: "auto" keeps `dtype`, "int8" rounds to a scale per token and head.
    """

    def __init__(
        self,
        spec: ModelSpec,
        blocks: range,
        n_pages: int,
        device: torch.device | str,
        dtype: torch.dtype,
        kind: str = "auto",
    ) -> None:
        if n_pages < 1:
            raise ValueError("a KV pool needs at least one page")
        _check_kind(kind)
        self.blocks, self.n_pages, self.kind = blocks, n_pages, kind
        self.device, self.dtype = torch.device(device), dtype
        self._held = {i: self._empty(spec.kv_heads[i], spec.head_dim[i]) for i in blocks}

    def block(self, index: int) -> BlockKV:
        """The KV of an absolute block index."""
        return self._held[index]

    @property
    def n_slots(self) -> int:
        """Slots that rows may use: those of the scratch page are not among them."""
        return self.n_pages * PAGE_TOKENS

    @property
    def scratch_page(self) -> int:
        """A page that no row owns; what it holds means nothing."""
        return self.n_pages

    def save(self, pages: Sequence[int]) -> HostPages:
        """Copy pages of all blocks to host memory, done when it returns. Raises ValueError for pages outside."""
        index, saved = self._index(pages), self._host_pages(len(pages))
        for tensor, spans in self._with_spans(saved):
            flat = tensor.index_select(0, index).view(-1).view(torch.uint8)
            for part, span in zip(torch.split(flat, [len(span) for span in spans]), spans, strict=True):
                span.copy_(part, non_blocking=True)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        return saved

    def restore(self, host: HostPages, pages: Sequence[int]) -> None:
        """Write what was saved into `pages`, in its order. Raises ValueError if it does not fit."""
        index = self._index(pages)
        if len(pages) != host.n_pages or host.n_bytes != self.page_bytes * host.n_pages:
            raise ValueError(f"{host.n_pages} saved pages of {host.n_bytes} bytes do not fit {len(pages)} here")
        for tensor, spans in self._with_spans(host):
            flat = torch.cat([span.to(self.device, non_blocking=True) for span in spans])
            tensor.index_copy_(0, index, flat.view(tensor.dtype).view(host.n_pages, *tensor.shape[1:]))

    def copy(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy pages onto as many others, in all blocks. Raises ValueError for pages that do not fit."""
        if len(source) != len(target):
            raise ValueError(f"{len(source)} pages cannot be copied to {len(target)}")
        index, onto = self._index(source), self._index(target)
        for tensor in self._paged():
            tensor.index_copy_(0, onto, tensor.index_select(0, index))

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in all blocks."""
        return sum(tensor[0].nbytes for tensor in self._paged())

    def _index(self, pages: Sequence[int]) -> torch.Tensor:
        if not pages or min(pages) < 0 or max(pages) >= self.n_pages:
            raise ValueError(f"pages {list(pages)} are not in a pool of {self.n_pages}")
        return torch.tensor(list(pages), dtype=torch.long, device=self.device)

    def _paged(self) -> Iterator[torch.Tensor]:
        """Every tensor of every block, as a view `[pages, PAGE_TOKENS, ...]`."""
        for held in self._held.values():
            for pair in held.pairs:
                yield from (part.view(-1, PAGE_TOKENS, *part.shape[1:]) for part in pair if part is not None)

    def _with_spans(self, host: HostPages) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
        """Each paged tensor with where its bytes are in what was saved."""
        start = 0
        for tensor in self._paged():
            size = tensor[0].nbytes * host.n_pages
            yield tensor, list(host.spans(start, size))
            start += size

    def _host_pages(self, count: int) -> HostPages:
        """Room for pages, page-locked for a GPU: copies then run at the bus's speed.

        Such memory is slow to get, but torch keeps it for the next time. It rounds each piece up to a power of two.
        """
        size, pinned = self.page_bytes * count, self.device.type == "cuda"
        pieces = (torch.empty(part, dtype=torch.uint8, pin_memory=pinned) for part in _piece_sizes(size))
        return HostPages(count, size, tuple(pieces))

    def _empty(self, heads: int, width: int) -> BlockKV:
        if self.kind == "auto":
            return BlockKV(self._numbers(heads, width, self.dtype), self._numbers(heads, width, self.dtype))
        keys, values = (self._numbers(heads, width, torch.int8) for _ in range(2))
        return BlockKV(keys, values, self._scales(heads), self._scales(heads))

    def _numbers(self, heads: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        slots = self.n_slots + PAGE_TOKENS
        if self.device.type == "cpu":
            return torch.zeros((heads, slots, width), dtype=dtype).transpose(0, 1)
        return torch.zeros((slots, heads, width), device=self.device, dtype=dtype)

    def _scales(self, heads: int) -> torch.Tensor:
        """A head's scales lie together: those of a page are then one read."""
        return torch.zeros((heads, self.n_slots + PAGE_TOKENS), device=self.device, dtype=_SCALE).transpose(0, 1)


def kv_bytes_per_token(spec: ModelSpec, blocks: range, dtype: torch.dtype, kind: str = "auto") -> int:
    """Bytes of KV that one token takes in the blocks of a span."""
    _check_kind(kind)
    if kind == "int8":
        return sum(2 * spec.kv_heads[i] * (spec.head_dim[i] + _SCALE.itemsize) for i in blocks)
    return sum(2 * spec.kv_heads[i] * spec.head_dim[i] for i in blocks) * dtype.itemsize


def _piece_sizes(size: int) -> Iterator[int]:
    """Powers of two that make up `size` bytes, the last one apart, which is small."""
    while size > 0:
        piece = size if size <= _LEAST_BYTES else min(_PIECE_BYTES, 1 << (size.bit_length() - 1))
        yield piece
        size -= piece


def to_int8(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round `[..., width]` to int8 with one float16 scale per last axis: `(int8 [..., width], scale [...])`.

    The scale is rounded first, so that what it loses is not lost twice.
    """
    exact = numbers.float()
    scale = (exact.abs().amax(dim=-1) / _INT8_MAX).to(_SCALE)
    step = scale.float()[..., None]
    steps = torch.where(step > 0, exact / step, 0.0).round().clamp(-_INT8_MAX, _INT8_MAX)
    return steps.to(torch.int8), scale


def from_int8(stored: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The numbers in float32 of int8 and a scale that broadcasts to them."""
    return stored * scale.float()


def _put(pool: torch.Tensor, slots: slice | torch.Tensor, new: torch.Tensor) -> None:
    if isinstance(slots, slice):
        pool[slots] = new
    else:
        pool.index_copy_(0, slots, new.to(pool.dtype))


def _check_kind(kind: str) -> None:
    if kind not in KV_DTYPES:
        raise ValueError(f"KV is kept as one of {', '.join(KV_DTYPES)}, not {kind!r}")
