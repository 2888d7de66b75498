"""What one lease has of the KV, and the moves that bring it from place to place. Data only: no tensors, no clock.

The pages on the device hold the lease's first positions, `saved` those behind them: pages leave from the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from shoal.peer.wire import PREFIX_TOKENS

if TYPE_CHECKING:
    from shoal.peer.prefix import Chunk, Scope

NEVER = 1 << 62


@dataclass(slots=True, eq=False)
class Saved:
    """`count` pages in host memory; `kv` is what the engine gave for them, once the move has been made."""

    count: int
    kv: object = None


@dataclass(slots=True, eq=False)
class Holding:
    """One lease's share. Positions are tokens, times are seconds of the node's clock.

    `keys`: of the prompt's chunks; cut off where the lease rewound, since what it writes there then is another text.
    `ready`: positions that have a place on the device and may be written; 0 while some are in host memory.
    """

    max_pages: int = 0
    priority: int = 0
    number: int = 0  # order of opening
    scope: Scope = ("", 0, 0)
    keys: tuple[bytes, ...] = ()
    pages: tuple[int, ...] = ()
    saved: list[Saved] = field(default_factory=list)  # the last one joins the pages on the device
    chunks: list[Chunk | None] = field(default_factory=list)  # of `pages`; None where another lease's was first
    end: int = 0  # positions in the KV once the step that was planned last has run
    done: int = 0  # positions in the KV now
    ready: int = 0
    next_chunk: int = NEVER  # `end` at which the next chunk of the prompt is whole
    fresh: bool = True  # it has written nothing yet
    jobs: int = 0  # steps that wait or run
    idle_since: float = 0.0
    turn_ends: float = 0.0  # until then its pages are its own
    waits_since: float | None = None  # it found no pages
    returning: bool = False  # some of its pages have come back from host memory, others are to come with later steps
    wants: tuple[int, int] = (0, 0)  # position and count for which it found none
    step: int = -1  # the last engine step for which it was prepared

    @property
    def n_pages(self) -> int:
        """Pages on the device and in host memory."""
        return len(self.pages) + sum(saved.count for saved in self.saved)

    def later(self, needs: int, most: int) -> int:
        """How many of the `needs` pages that it takes to go on come with later steps, if no more than `most` may come
        back from host memory before this one."""
        now = 0
        for saved in reversed(self.saved):
            if now + saved.count > most:
                return needs - now
            now += saved.count
        return 0

    def note_next_chunk(self) -> None:
        """To be done whenever `keys` or `chunks` have changed."""
        known = len(self.chunks)
        self.next_chunk = (known + 1) * PREFIX_TOKENS if known < len(self.keys) else NEVER


@dataclass(frozen=True, slots=True)
class Save:
    """Bring pages to host memory; they may belong to somebody else as soon as this is done."""

    holding: Holding
    saved: Saved
    pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Restore:
    """Bring what was saved back, to these pages."""

    holding: Holding
    saved: Saved
    pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy a page that others read before its holder writes to it."""

    holding: Holding
    source: int
    target: int


Move: TypeAlias = Save | Restore | Copy


@dataclass(slots=True)
class Counts:
    """What has been done since the start; pages, except where a name says otherwise."""

    saved: int = 0
    restored: int = 0
    copied: int = 0
    evicted_chunks: int = 0
    hits: int = 0  # leases that found a beginning of their prompt
    hit_tokens: int = 0
