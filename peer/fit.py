"""How many blocks a machine has room for, with how much KV, and why. Figures in, figures out: no tensors, no clock.

The share of KV matters as much as the number of blocks: a peer whose memory is all weights can serve nobody. So a block
counts as fitting only if the KV of all blocks keeps its floor beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.blocks.errors import NoMemory

FLOOR_TOKENS = 8192  # KV below which another block is not worth its place: a few sessions of a few thousand tokens
FLOOR_SHARE = 8  # and one part in so many of the memory
FEWEST_TOKENS = 1024  # less than this serves nobody, even with a single block
BUFFERS = 2  # device buffers that streamed blocks take turns in
KEPT_BYTES = 2**30  # outputs kept for repairs, at most
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Figures:
    """A model and a machine. Bytes; `weights` and `kv` (a token's) by block. `reserve`: what weights and KV must leave.

    `shared`: the device computes in host memory. `most_tokens`: KV that the device could make use of, in tokens.
    `context`: what this process had of the device, by its driver, before `free` was looked at.
    """

    weights: tuple[int, ...]
    kv: tuple[int, ...]
    reserve: int
    free: int
    host_free: int
    shared: bool
    most_tokens: int
    page_tokens: int
    context: int = 0


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the volunteer said; None: not said. `vram` bounds what is used on the device, `host_memory` on the host."""

    vram: int | None = None
    host_memory: int | None = None
    blocks: range | None = None
    num_blocks: int | None = None
    kv_tokens: int | None = None
    offload: bool = False


@dataclass(frozen=True, slots=True)
class Fit:
    """`blocks` to serve, `streamed` of them from host memory; KV in tokens; swap in pages; `kept_bytes` for outputs."""

    blocks: int
    streamed: int
    kv_tokens: int
    swap_pages: int
    kept_bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class _Room:
    """`blocks` blocks, `resident` of them on the device, with `tokens` of KV."""

    blocks: int
    resident: int
    tokens: int


def fit(figures: Figures, wishes: Wishes) -> Fit:
    """The most blocks that fit. Raises NoMemory if not even one does, or not those that were asked for."""
    return _Fitting(figures, wishes).run()


class _Fitting:
    """One decision. Blocks may differ in size: what counts for n blocks is the heaviest n that may be chosen."""

    def __init__(self, figures: Figures, wishes: Wishes) -> None:
        self.figures, self.wishes = figures, wishes
        self.context = 0 if wishes.vram is None else figures.context
        self.may_use = max(0, min(figures.free, (wishes.vram or figures.free) - self.context))
        self.usable = max(0, self.may_use - figures.reserve)
        chosen = wishes.blocks or range(len(figures.weights))
        self.weights = figures.weights[chosen.start : chosen.stop]
        self.kv = figures.kv[chosen.start : chosen.stop]
        self.most = len(chosen) if wishes.blocks else min(wishes.num_blocks or len(chosen), len(chosen))
        self.fewest = len(chosen) if wishes.blocks else 1

    def run(self) -> Fit:
        room = self._resident()
        if self.wishes.offload and (room is None or room.blocks < self.most):
            room = self._streamed(room.blocks if room else 0) or room
        room = room or self._small()
        if room is None:
            raise NoMemory(self._too_little())
        swap_pages, kept = self._host(room)
        streamed = room.blocks - room.resident
        return Fit(room.blocks, streamed, room.tokens, swap_pages, kept, self._why(room))

    def _resident(self) -> _Room | None:
        """All on the device, with KV of at least its floor."""
        for count in range(self.most, self.fewest - 1, -1):
            left = self.usable - _heaviest(self.weights, count)
            tokens = self._tokens(left, count)
            if tokens >= self._floor(count):
                return _Room(count, count, tokens)
        return None

    def _streamed(self, resident: int) -> _Room | None:
        """More blocks than `resident`, those that do not fit beside two buffers and the KV's floor in host memory."""
        buffers = BUFFERS * max(self.weights)
        for count in range(self.most, max(resident, BUFFERS, self.fewest - 1), -1):
            floor = self.wishes.kv_tokens or min(FLOOR_TOKENS, self.figures.most_tokens)
            pages = -(-floor // self.figures.page_tokens) + 1  # and one that is nobody's
            left = self.usable - buffers - pages * self.figures.page_tokens * _heaviest(self.kv, count)
            here = min(count - 1, left // max(self.weights))  # any of them: those that are streamed are spread
            if left >= 0 and (count - here) * max(self.weights) <= self._host_bytes():
                tokens = self._tokens(self.usable - buffers - here * max(self.weights), count)
                return _Room(count, here, tokens)
        return None

    def _small(self) -> _Room | None:
        """The fewest blocks with less KV than its floor: better than nothing."""
        tokens = self._tokens(self.usable - _heaviest(self.weights, self.fewest), self.fewest)
        return _Room(self.fewest, self.fewest, tokens) if tokens >= (self.wishes.kv_tokens or FEWEST_TOKENS) else None

    def _floor(self, count: int) -> int:
        if self.wishes.kv_tokens:
            return self.wishes.kv_tokens
        share = self.usable // FLOOR_SHARE // _heaviest(self.kv, count)
        return self._whole_pages(min(max(FLOOR_TOKENS, share), self.figures.most_tokens))

    def _tokens(self, n_bytes: int, count: int) -> int:
        """Tokens of KV that bytes hold for `count` blocks; what was asked for if they do. One page is nobody's."""
        room = self._whole_pages(n_bytes // _heaviest(self.kv, count)) - self.figures.page_tokens
        wanted = self.wishes.kv_tokens or self.figures.most_tokens
        wanted = -(-wanted // self.figures.page_tokens) * self.figures.page_tokens
        return max(0, min(room, wanted))

    def _whole_pages(self, tokens: int) -> int:
        return tokens // self.figures.page_tokens * self.figures.page_tokens

    def _host_bytes(self) -> int:
        """Host memory for streamed blocks, swapped sessions and kept outputs; by default a good part of what is free
        where blocks are streamed, and less where not."""
        if self.wishes.host_memory is not None:
            return self.wishes.host_memory
        return self.figures.host_free * 3 // 4 if self.wishes.offload else self.figures.host_free // 4

    def _host(self, room: _Room) -> tuple[int, int]:
        """Pages for swapped sessions, and bytes for kept outputs, of what streamed blocks leave.

        Unasked, no more sessions are admitted than twice what the device holds, so that swapping stays rare; and where
        the device computes in host memory, swapping would only move bytes within it.
        """
        streamed = (room.blocks - room.resident) * max(self.weights)  # which ones they are depends on the span
        left = max(0, self._host_bytes() - streamed)
        kept = min(KEPT_BYTES, left // 4)
        page = _heaviest(self.kv, room.blocks) * self.figures.page_tokens
        pages = (left - kept) // page
        if self.wishes.host_memory is None:
            pages = 0 if self.figures.shared else min(pages, room.tokens // self.figures.page_tokens)
        return pages, kept

    def _why(self, room: _Room) -> str:
        count, here = room.blocks, room.resident
        streamed = (count - here) * max(self.weights)
        held = _heaviest(self.weights, here) + (BUFFERS * max(self.weights) if streamed else 0)
        kv = _heaviest(self.kv, count) * room.tokens
        text = (
            f"{self._which(count)}: {size(held)} of {size(self.may_use)} for weights, {size(kv)} for {room.tokens} "
            f"tokens of KV, {size(self.figures.reserve)} kept free{self._beside()}"
        )
        return f"{text}; {count - here} of them are streamed from {size(streamed)} of host memory" if streamed else text

    def _beside(self) -> str:
        return f" beside {size(self.context)} for the GPU's driver" if self.context else ""

    def _which(self, count: int) -> str:
        if blocks := self.wishes.blocks:
            return f"blocks {blocks.start}:{blocks.stop} fit"
        asked = " (as many as asked for)" if count == self.wishes.num_blocks else ""
        return f"{count} of {len(self.figures.weights)} blocks fit{asked}"

    def _too_little(self) -> str:
        tokens = self.wishes.kv_tokens or FEWEST_TOKENS
        weights, kv = _heaviest(self.weights, self.fewest), _heaviest(self.kv, self.fewest) * tokens
        blocks = self.wishes.blocks
        what = f"blocks {blocks.start}:{blocks.stop}" if blocks and len(blocks) > 1 else "one block"
        return (
            f"too little memory for {what}: {size(weights)} for weights, {size(kv)} for {tokens} tokens of KV and "
            f"{size(self.figures.reserve)} to work in are needed, {size(self.may_use)} may be used{self._beside()}; "
            f"quantize (--quant nf4), take fewer blocks or tokens of KV, or give it more (--vram)"
        )


def size(n_bytes: int) -> str:
    """Bytes for people."""
    unit, name = (GIB, "GiB") if n_bytes >= GIB else (2**20, "MiB") if n_bytes >= 2**19 else (2**10, "KiB")
    return f"{n_bytes / unit:.1f} {name}"


def _heaviest(figures: tuple[int, ...], count: int) -> int:
    """The greatest sum of `count` consecutive figures."""
    return max((sum(figures[first : first + count]) for first in range(len(figures) - count + 1)), default=0)
