"""KV of prompts' beginnings that outlives its lease, for the same client alone. Integers only: no tensors, no clock.

A key stands for a prompt up to the end of a chunk of `PREFIX_TOKENS` tokens; it is looked up together with the owner's
peer id and the blocks, so that nobody else can find, probe or replace it. Chunks that no lease uses go when pages are
needed, the least recently used first, and a prompt's end before its beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.peer.pages import PageAllocator

Scope: TypeAlias = tuple[str, int, int]  # the owner's peer id, first and last block (not included)


@dataclass(slots=True, eq=False)
class Chunk:
    """Pages with the KV of one chunk; `users`: leases that hold them as well."""

    key: tuple[Scope, bytes]
    pages: tuple[int, ...]
    users: int = 0


class PrefixCache:
    """Holds one share of each page of its chunks."""

    def __init__(self, pages: PageAllocator) -> None:
        self._pages = pages
        self._chunks: dict[tuple[Scope, bytes], Chunk] = {}
        self._idle: dict[tuple[Scope, bytes], Chunk] = {}  # nobody uses them; the least recently used first

    @property
    def idle_pages(self) -> int:
        """Pages that could be had by forgetting chunks."""
        return sum(len(chunk.pages) for chunk in self._idle.values())

    def find(self, scope: Scope, keys: Sequence[bytes]) -> list[Chunk]:
        """The chunks of the longest known beginning."""
        found = []
        for key in keys:
            if (chunk := self._chunks.get((scope, key))) is None:
                break
            found.append(chunk)
        return found

    def add(self, scope: Scope, key: bytes, pages: tuple[int, ...]) -> Chunk | None:
        """Remember a chunk that a lease has computed, and uses; None if the key is known already."""
        if (scope, key) in self._chunks:
            return None
        chunk = self._chunks[scope, key] = Chunk((scope, key), pages, users=1)
        self._pages.share(pages)
        return chunk

    def use(self, chunk: Chunk) -> tuple[int, ...]:
        """A lease takes a chunk's pages, of which it holds a share from now on."""
        self._pages.share(chunk.pages)
        self._idle.pop(chunk.key, None)
        chunk.users += 1
        return chunk.pages

    def leave(self, chunk: Chunk) -> None:
        """A lease no longer uses a chunk; it gives its share of the pages back by itself."""
        chunk.users -= 1
        if not chunk.users:
            self._idle[chunk.key] = chunk

    def evict(self) -> bool:
        """Forget the least recently used chunk that nobody uses; False if there is none."""
        if not self._idle:
            return False
        key = next(iter(self._idle))
        del self._chunks[key]
        self._pages.release(self._idle.pop(key).pages)
        return True
