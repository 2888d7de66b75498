"""A toy model in whole numbers whose answers depend on every token before, through real pages: any mix-up shows.

Hidden states are `WIDTH` numbers below `PRIME`; a block stores one number per position in the KV and adds a weighted
sum over all positions before. Float32 holds these numbers exactly.
"""

from __future__ import annotations

import asyncio
import struct
from operator import mul
from typing import TYPE_CHECKING

from shoal.peer.engine import Output
from shoal.peer.order import EngineFault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.peer.engine import Piece

WIDTH = 4
PRIME = 4093
VOCAB = 251
PAGE_TOKENS = 4
PLACES = range(1, 4096)
ROW = struct.Struct(f"<{WIDTH}f")


def embed(token: int) -> list[int]:
    return [(token * (i + 3) + 7 * i) % PRIME for i in range(WIDTH)]


def choose(hidden: Sequence[float]) -> int:
    """The greedy next token."""
    return int(sum((i + 1) * int(x) for i, x in enumerate(hidden))) % VOCAB


def block(index: int, hidden: Sequence[int], kv: Sequence[int]) -> list[int]:
    """One block: `kv` holds this position's entry as its last."""
    attended = sum(map(mul, kv, PLACES))
    return [(3 * x + attended + 11 * index + i) % PRIME for i, x in enumerate(hidden)]


def entry(index: int, hidden: Sequence[int]) -> int:
    """What a block keeps of a position."""
    return (hidden[0] + 5 * hidden[-1] + index) % PRIME


def generate(prompt: Sequence[int], n_blocks: int, count: int) -> list[int]:
    """The tokens that an undisturbed run gives: the whole model in one place."""
    kv: list[list[int]] = [[] for _ in range(n_blocks)]
    tokens = list(prompt)
    for position in range(len(prompt) + count):
        hidden = embed(tokens[position])
        for index in range(n_blocks):
            kv[index].append(entry(index, hidden))
            hidden = block(index, hidden, kv[index])
        if position >= len(prompt) - 1 and len(tokens) < len(prompt) + count:
            tokens.append(choose(hidden))
    return tokens[len(prompt) :]


class Whole:
    """Blocks `[start, stop)` in one place, undisturbed: what a session over them has to give."""

    def __init__(self, start: int, stop: int) -> None:
        self.position = 0
        self._blocks = range(start, stop)
        self._kv: list[list[int]] = [[] for _ in self._blocks]

    async def step(self, tokens: Sequence[int]) -> list[list[int]]:
        """Every token's hidden states."""
        out = []
        for token in tokens:
            hidden = embed(token)
            for index, kv in zip(self._blocks, self._kv, strict=True):
                del kv[self.position :]
                kv.append(entry(index, hidden))
                hidden = block(index, hidden, kv)
            self.position += 1
            out.append(hidden)
        return out


class ToyEngine:
    """`Engine` over toy blocks. Each engine step costs `step_s` plus `token_s` a token, in virtual time; moving pages
    to and from host memory costs `step_s` a time. With the next step, `fault_next`: it fails; `spoil_next`: its outputs
    are not finite; `break_next`: the device is lost.
    """

    def __init__(self, start: int, stop: int, n_pages: int = 256, step_s: float = 0.004) -> None:
        self.start, self.stop, self.width = start, stop, WIDTH
        self.n_pages, self.page_tokens, self.page_bytes = n_pages, PAGE_TOKENS, PAGE_TOKENS * (stop - start)
        self.step_s, self.token_s = step_s, 0.0002
        self.max_step_tokens, self.max_batch = 512, 256
        self.batches: list[int] = []
        self.fault_next = self.spoil_next = self.break_next = self.broken = False
        self._kv = [[[-1] * PAGE_TOKENS for _ in range(n_pages)] for _ in range(stop - start)]

    def quick(self, start: int, stop: int, count: int) -> bool:
        return False  # its steps take virtual time

    def run_now(self, batch: Sequence[Piece]) -> list[Output]:
        raise NotImplementedError

    async def run(self, batch: Sequence[Piece]) -> list[Output]:
        self.batches.append(len(batch))
        await asyncio.sleep(self.step_s + self.token_s * sum(piece.count for piece in batch))
        self._fail_if_told()
        finite, self.spoil_next = not self.spoil_next, False
        return [self._run_piece(piece, finite=finite) for piece in batch]

    async def save(self, pages: Sequence[int]) -> object:
        await asyncio.sleep(self.step_s)
        self._fail_if_told()
        return [[list(block[page]) for page in pages] for block in self._kv]

    async def restore(self, saved: object, pages: Sequence[int]) -> None:
        await asyncio.sleep(self.step_s)
        self._fail_if_told()
        for block, kept in zip(self._kv, saved, strict=True):
            for page, numbers in zip(pages, kept, strict=True):
                block[page] = list(numbers)

    async def copy(self, source: Sequence[int], target: Sequence[int]) -> None:
        self._fail_if_told()
        for block in self._kv:
            for page, other in zip(source, target, strict=True):
                block[other] = list(block[page])

    def close(self) -> None:
        return

    def _fail_if_told(self) -> None:
        self.broken = self.broken or self.break_next
        if self.fault_next or self.broken:
            self.fault_next = False
            raise EngineFault("a planned fault")

    def _run_piece(self, piece: Piece, *, finite: bool) -> Output:
        rows = list(ROW.iter_unpack(bytes(piece.payload)))[piece.offset : piece.offset + piece.count]
        out = [self._run_token(piece, [int(x) for x in row], piece.position + i) for i, row in enumerate(rows)]
        kept = out[len(out) - piece.keep_rows :]
        return Output(bytearray(b"".join(ROW.pack(*map(float, row)) for row in kept)), finite)

    def _run_token(self, piece: Piece, hidden: list[int], position: int) -> list[int]:
        page, slot = divmod(position, PAGE_TOKENS)
        for index in range(piece.start, piece.stop):
            pages = self._kv[index - self.start]
            pages[piece.pages[page]][slot] = entry(index, hidden)
            kv = [number for before in piece.pages[:page] for number in pages[before]]
            hidden = block(index, hidden, kv + pages[piece.pages[page]][: slot + 1])
        return hidden
