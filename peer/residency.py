"""Whose KV is on the device and whose waits in host memory. Sans-IO: no tensors, no sockets; told the time.

A lease gets pages as its tokens come. When none are free, cached beginnings of prompts go first. Then leases make room:
those without work, longest idle first; then of those with work the background ones, then the youngest. Who was brought
in keeps its pages for a turn, and who has waited for a turn may take from anybody whose turn is over: so all that have
work come to run, and pages are not carried to and fro for every token. Moves are carried out in order, before the
engine step for which they were planned. All that run in it wait for them: a long lease comes back over several steps,
and others make room for it no faster.

It cannot run dry: all leases together fit into device and host memory (`open`), each alone fits onto the device, and
pages leave one by one. Host memory takes up to one lease and `TAKE` pages more for the moment of an exchange.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.peer.holding import NEVER, Copy, Counts, Holding, Restore, Save, Saved
from shoal.peer.pages import PageAllocator
from shoal.peer.precedence import TURN_S, cost_of_leaving, next_chance, patience, yields
from shoal.peer.prefix import PrefixCache
from shoal.peer.wire import PREFIX_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shoal.peer.holding import Move
    from shoal.peer.prefix import Scope

TAKE = 8  # pages that leave at once, if there are as many: a move for every page would cost more


class Residency:
    """Every lease's `Holding`, the pages, and the moves that are due (`take_moves`)."""

    def __init__(self, n_pages: int, page_tokens: int, swap_pages: int = 0, step_pages: int = 1 << 62) -> None:
        self.pages = PageAllocator(n_pages)
        self.prefix = PrefixCache(self.pages)
        self.counts = Counts()
        self.committed = 0  # pages that leases may come to need
        self.total = n_pages + swap_pages
        self._step_pages = self._may_return = step_pages  # that may come back before one step, and before this one
        self._page_tokens = page_tokens
        self._chunk_pages = 0 if PREFIX_TOKENS % page_tokens else PREFIX_TOKENS // page_tokens
        self._holdings: dict[Holding, None] = {}
        self._waiting: dict[Holding, None] = {}
        self._overdue: Holding | None = None  # has waited longest, and too long: nobody else gets pages in this step
        self._moves: list[Move] = []
        self._now, self._step, self._number = 0.0, 0, 0

    # -- leases ---------------------------------------------------------------------------------------------------

    def open(self, max_tokens: int, priority: int, scope: Scope, keys: tuple[bytes, ...] = ()) -> Holding | None:
        """A place for a lease, with the pages of what is known of its prompt (`end` positions); None if it is full."""
        needed = self.pages_for(max_tokens)
        if self.committed + needed > self.total:
            return None
        self._number += 1
        self.committed += needed
        holding = Holding(needed, priority, self._number, scope, idle_since=self._now)
        holding.keys = keys[: max_tokens // PREFIX_TOKENS] if self._chunk_pages else ()
        holding.chunks = [*self.prefix.find(scope, holding.keys)]
        holding.pages = tuple(page for chunk in holding.chunks if chunk for page in self.prefix.use(chunk))
        holding.end = holding.done = len(holding.chunks) * PREFIX_TOKENS
        holding.note_next_chunk()
        self._holdings[holding] = None
        self.counts.hits += bool(holding.end)
        self.counts.hit_tokens += holding.end
        return holding

    def leave(self, holding: Holding) -> None:
        """The lease has ended: others may be promised its room, though its pages are its own until `close`."""
        self.committed -= holding.max_pages
        holding.max_pages = 0

    def close(self, holding: Holding) -> None:
        """The lease has ended, and nothing runs on its pages any more; what is cached of it stays."""
        self.leave(holding)
        del self._holdings[holding]
        self._waiting.pop(holding, None)
        self._overdue = None if self._overdue is holding else self._overdue
        self._leave_chunks(holding, 0)
        self.pages.release(holding.pages)
        holding.pages, holding.saved, holding.ready, holding.next_chunk = (), [], 0, NEVER

    # -- an engine step -------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """A step is about to be formed: whoever waits for pages comes first."""
        self._now, self._step, self._overdue, self._may_return = now, self._step + 1, None, self._step_pages
        for holding in sorted(self._waiting, key=lambda holding: patience(holding, now), reverse=True):
            if self._make_ready(holding, *holding.wants):
                holding.step = self._step
            elif self._may_return and patience(holding, now) >= 2 * TURN_S:
                self._overdue = holding
                break

    def prepare(self, holding: Holding, position: int, count: int) -> bool:
        """Whether these tokens can run in this step; if so, they will."""
        if (position != holding.end or position + count > holding.ready) and not self._make_ready(
            holding, position, count
        ):
            return False
        if holding.waits_since is not None:  # for more tokens than these, which its pages hold
            self._wait_no_longer(holding)
        holding.end = position + count
        holding.step = self._step
        return True

    def take_moves(self) -> list[Move]:
        """What must be done, in this order, before the step runs."""
        moves, self._moves = self._moves, []
        return moves

    def written(self, holding: Holding) -> None:
        """The step has run: chunks of the prompt that are whole now may be found by the owner's next leases."""
        holding.done = holding.end
        while holding.end >= holding.next_chunk:
            self._add_chunk(holding)

    def name(self, holding: Holding, keys: tuple[bytes, ...]) -> None:
        """The lease is about to end, and its owner names all that it has run: chunks that are whole, on the device and
        not known yet may be found from now on. Keys that contradict those of the prompt are ignored."""
        known = len(holding.chunks)
        if not self._chunk_pages or keys[:known] != holding.keys[:known]:
            return
        holding.keys = keys[: min(holding.done // PREFIX_TOKENS, len(holding.pages) // self._chunk_pages)]
        while len(holding.chunks) < len(holding.keys):
            self._add_chunk(holding)

    def rerouted(self, holding: Holding) -> None:
        """Other hops may come before it now: what it writes from here on is not what the prompt's keys name."""
        holding.keys = holding.keys[: len(holding.chunks)]
        holding.note_next_chunk()

    def _add_chunk(self, holding: Holding) -> None:
        index, size = len(holding.chunks), self._chunk_pages
        pages = holding.pages[index * size : (index + 1) * size]
        holding.chunks.append(self.prefix.add(holding.scope, holding.keys[index], pages))
        holding.note_next_chunk()

    def retry_s(self) -> float:
        """Seconds until somebody who waits may get pages, if nothing happens before."""
        return max(1e-3, next_chance(self._holdings, self._waiting, self._now) - self._now)

    # -- places ---------------------------------------------------------------------------------------------------

    def _make_ready(self, holding: Holding, position: int, count: int) -> bool:
        """Give the lease a place for these tokens, and bring back what it needs before them."""
        if position < holding.end:
            self._rewind(holding, position)
        last = self.pages_for(position + count)
        needs = self._needs(holding, last)
        later = holding.later(needs, self._may_return)
        enough = later == needs or needs <= self.pages.free
        free = self._overdue in (None, holding) and (enough or self._make_room(holding, last, later))
        if needs and not free:
            self._wait(holding, position, count)
            return False
        self._fill(holding, last, later)
        if later:
            self._may_return = 0  # nobody overtakes it
            self._wait(holding, position, count)
        return not later

    def _wait(self, holding: Holding, position: int, count: int) -> None:
        holding.wants = position, count
        if holding.waits_since is None:
            holding.waits_since = self._now
            self._waiting[holding] = None

    def _wait_no_longer(self, holding: Holding) -> None:
        """What it waited for does not count any more: its next tokens are others."""
        holding.waits_since = None
        del self._waiting[holding]

    def _needs(self, holding: Holding, last: int) -> int:
        """Free pages that it takes to bring a lease's first `last` pages to the device."""
        missing = max(last, holding.n_pages) - len(holding.pages)
        return missing + self._writes_to_shared(holding)

    def _writes_to_shared(self, holding: Holding) -> bool:
        """Whether the next token goes to a page that others hold; only after a rewind, and it is the last one then."""
        is_last = not holding.saved and holding.end < len(holding.pages) * self._page_tokens
        return is_last and self.pages.holders(holding.pages[-1]) > 1

    def _fill(self, holding: Holding, last: int, later: int) -> None:
        """Allocate, copy and restore all but `later` pages; there are free ones enough."""
        shared = self._writes_to_shared(holding)
        own = holding.pages[:-1] if shared else holding.pages
        needs, room = self._needs(holding, last) - later, max(0, holding.max_pages - last) + later
        pages = self.pages.allocate(needs, own[-1] if own else None, room)
        if pages is None:
            raise RuntimeError("pages were counted wrongly")
        if shared:
            self._moves.append(Copy(holding, holding.pages[-1], pages[0]))
            self.pages.release(holding.pages[-1:])
            self.counts.copied += 1
        self._restore(holding, pages)
        holding.pages, surplus = (own + pages)[:last], (own + pages)[last:]
        self.pages.release(surplus)
        holding.returning = later > 0 and (holding.returning or needs > 0)
        if later:
            return
        holding.ready, holding.fresh = len(holding.pages) * self._page_tokens, False
        if holding.waits_since is not None:
            holding.turn_ends = self._now + TURN_S
            self._wait_no_longer(holding)

    def _restore(self, holding: Holding, pages: tuple[int, ...]) -> None:
        """Bring everything back to the first of these pages, or what they have place for."""
        if holding.saved and pages:
            holding.turn_ends = self._now + TURN_S
        while holding.saved and pages:
            saved = holding.saved.pop()
            self._moves.append(Restore(holding, saved, pages[: saved.count]))
            pages = pages[saved.count :]
            self._may_return -= saved.count
            self.counts.restored += saved.count

    def _rewind(self, holding: Holding, position: int) -> None:
        """Everything from `position` on is void."""
        if not holding.fresh:
            holding.keys = holding.keys[: position // PREFIX_TOKENS]
        self._leave_chunks(holding, position // PREFIX_TOKENS)
        keep = self.pages_for(position)
        while holding.saved and holding.n_pages - holding.saved[0].count >= keep:
            del holding.saved[0]
        if not holding.saved:
            self.pages.release(holding.pages[keep:])
            holding.pages = holding.pages[:keep]
        holding.end, holding.ready = position, 0
        holding.done = min(holding.done, position)
        holding.note_next_chunk()

    # -- making room ----------------------------------------------------------------------------------------------

    def _make_room(self, holding: Holding, last: int, later: int) -> bool:
        """Free all but `later` of the pages that the lease needs; False, and no lease has lost any, if there cannot be
        room for all of them now."""
        if not later and self._evict_for(holding, last, later):
            return True
        victims = self._victims(holding)
        if not self._suffice(victims, holding, last):
            return False
        for victim in victims:
            while victim.pages and not self._evict_for(holding, last, later):
                self._save(victim, self._needs(holding, last) - later - self.pages.free)
        return self._evict_for(holding, last, later)

    def _evict_for(self, holding: Holding, last: int, later: int) -> bool:
        """Forget cached chunks until there is room for all but `later` pages; False if there are not enough."""
        while self._needs(holding, last) - later > self.pages.free:
            if not self.prefix.evict():
                return False
            self.counts.evicted_chunks += 1
        return True

    def _victims(self, holding: Holding) -> list[Holding]:
        """Who can make room for a lease now, first those whom it hurts least."""
        now = self._now
        free = (other for other in self._holdings if other.pages and other is not holding and other.step != self._step)
        return sorted(
            (other for other in free if yields(other, holding, now)), key=lambda other: cost_of_leaving(other, now)
        )

    def _suffice(self, victims: Iterable[Holding], holding: Holding, last: int) -> bool:
        """Whether there is room once all of them have left, and all that is cached is forgotten."""
        stay = self._holdings.keys() - {*victims, holding}
        theirs = {page for other in stay for page in other.pages}
        copies = self._writes_to_shared(holding) and holding.pages[-1] in theirs
        missing = self._needs(holding, last) - self._writes_to_shared(holding) + copies
        return missing <= self.pages.n_pages - len(theirs.union(holding.pages))

    def _save(self, victim: Holding, count: int) -> None:
        """Bring the lease's last pages to host memory."""
        count = min(len(victim.pages), max(count, TAKE), self._step_pages)
        kept, leaving = victim.pages[:-count], victim.pages[-count:]
        saved = Saved(count)
        self._moves.append(Save(victim, saved, leaving))
        victim.saved.append(saved)
        victim.pages, victim.ready, victim.returning = kept, 0, False
        if self._chunk_pages:
            self._leave_chunks(victim, len(kept) // self._chunk_pages)
        self.pages.release(leaving)
        self.counts.saved += count

    def _leave_chunks(self, holding: Holding, keep: int) -> None:
        while len(holding.chunks) > keep:
            if (chunk := holding.chunks.pop()) is not None:
                self.prefix.leave(chunk)
        holding.note_next_chunk()

    def pages_for(self, tokens: int) -> int:
        """Pages for so many tokens."""
        return -(-tokens // self._page_tokens)
