"""The hops of a route and the messages that tell each of its neighbours. Sans-IO: data and messages only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.peer.wire import Close, Hidden, Open, Reroute, Want

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shoal.client.actions import SessionTerms
    from shoal.peer.wire import Buffer
    from shoal.routing.route import Hop

REPLAY_TOKENS = 512


@dataclass(slots=True, eq=False)
class Link:
    """One hop in use. `fresh`: opened by the repair under way; `ready`: it confirmed the current epoch; `seen`: the
    newest step that it sent a receipt for."""

    hop: Hop
    fresh: bool = True
    ready: bool = False
    seen: int = -1

    @property
    def peer_id(self) -> str:
        """Who serves it."""
        return self.hop.peer_id


@dataclass(frozen=True, slots=True)
class Step:
    """A step in flight: its input is kept until it is answered. `length`: where its prompt ends (0: with it)."""

    number: int
    position: int
    count: int
    want: Want
    payload: Buffer
    length: int = 0


class Chain:
    """Links in order of their blocks, and what to tell them under the current epoch."""

    def __init__(self, terms: SessionTerms) -> None:
        self.terms = terms
        self.links: list[Link] = []
        self.epoch = 0

    def index_of(self, peer_id: str) -> int | None:
        """Where a peer stands, or None."""
        return next((i for i, link in enumerate(self.links) if link.peer_id == peer_id), None)

    def insert(self, hops: Iterable[Hop], start: int, stop: int) -> bool:
        """Put new hops in the place of blocks `[start, stop)`; True if other hops survive."""
        before = [link for link in self.links if link.hop.stop <= start]
        after = [link for link in self.links if link.hop.start >= stop]
        for link in (*before, *after):
            link.fresh = link.ready = False
        self.links = [*before, *map(Link, hops), *after]
        return bool(before or after)

    def remove(self, start: int, stop: int) -> list[str]:
        """Take the hops within `[start, stop)` out; their peers."""
        gone = [link for link in self.links if start <= link.hop.start < stop]
        self.links = [link for link in self.links if link not in gone]
        return [link.peer_id for link in gone]

    def open(self, index: int, next_step: int) -> Open:
        """Ask a hop for its lease."""
        prev, after, addrs = self._neighbours(index)
        hop, last, terms = self.links[index].hop, index == len(self.links) - 1, self.terms
        return Open(
            session=terms.session, epoch=self.epoch, namespace=terms.namespace, revision=terms.revision,
            start=hop.start, stop=hop.stop, max_tokens=terms.max_tokens, next_step=next_step, dtype=terms.dtype,
            prev=prev, next=after, next_addrs=addrs, final=last,
            forward_replay=not last and self.links[index + 1].fresh, proof=terms.prove(hop.peer_id),
        )  # fmt: skip

    def reroute(self, index: int, replay_to: int) -> Reroute:
        """Tell a survivor its neighbours; it refills a new one behind it up to `replay_to`."""
        prev, after, addrs = self._neighbours(index)
        refill = index + 1 < len(self.links) and self.links[index + 1].fresh
        return Reroute(
            session=self.terms.session, epoch=self.epoch, prev=prev, next=after, next_addrs=addrs,
            replay_to=replay_to if refill else 0,
        )  # fmt: skip

    def close(self) -> Close:
        """End a lease."""
        return Close(session=self.terms.session, epoch=self.epoch)

    def hidden(self, step: Step, *, replay: bool = False) -> Hidden:
        """A step's input for the first hop."""
        return Hidden(
            session=self.terms.session, epoch=self.epoch, step=step.number, position=step.position, count=step.count,
            want=step.want, replay=replay, rows=step.count, width=self.terms.width, dtype=self.terms.dtype,
            length=step.length, payload=step.payload,
        )  # fmt: skip

    def _neighbours(self, index: int) -> tuple[str, str, tuple[str, ...]]:
        prev = self.links[index - 1].peer_id if index else ""
        after = self.links[index + 1].peer_id if index + 1 < len(self.links) else ""
        return prev, after, self.terms.addrs(after)[:8] if after else ()


class Lengths:
    """Which positions belong to a prompt of which length, so that a replay is cut as the steps were."""

    def __init__(self) -> None:
        self._starts: list[tuple[int, int]] = []  # (first position, length), rising; a length of 0 for decode steps

    def note(self, position: int, length: int) -> None:
        """From `position` on, tokens belong to a prompt that ends at `length` (0: each stands for itself)."""
        while self._starts and self._starts[-1][0] >= position:
            self._starts.pop()
        if not self._starts or self._starts[-1][1] != length:
            self._starts.append((position, length))

    def pieces(self, stop: int) -> list[tuple[int, int, int]]:
        """`(position, count, length)` that tile `[0, stop)`, none longer than `REPLAY_TOKENS`."""
        pieces = []
        for index, (start, length) in enumerate(self._starts):
            end = min(stop, self._starts[index + 1][0]) if index + 1 < len(self._starts) else stop
            pieces += [(at, min(REPLAY_TOKENS, end - at), length) for at in range(start, end, REPLAY_TOKENS)]
        return pieces
