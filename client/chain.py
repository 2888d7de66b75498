"""The hops of a route and the messages that tell each of its neighbours. Sans-IO: data and messages only."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from shoal.client.tempo import Pace
from shoal.peer.wire import PREFIX_TOKENS, Close, Hidden, Open, Reroute

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shoal.client.actions import SessionTerms
    from shoal.client.prefix import Prefix
    from shoal.client.steps import Step
    from shoal.routing.route import Hop, Route


@dataclass(slots=True, eq=False)
class Link:
    """One hop in use. `fresh`: opened by the repair under way; `ready`: it confirmed the current epoch; `seen`: the
    newest step that it sent a receipt for; `offered`: tokens of the prompt that it got keys for; `cached`: those of
    them that it holds; `begins`: where its kept outputs begin; `leaving`: it asked to be replaced; `slow_s`: if it
    has become too slow, the seconds a token that others may promise to be worth a move; `silent`: it has not been
    heard of for long, though its link stands; `pace`: how fast it is; `born`: the epoch under which it was opened;
    `filling`: what came before it was opened is being sent to it, and no step has been answered since."""

    hop: Hop
    fresh: bool = True
    ready: bool = False
    seen: int = -1
    offered: int = 0
    cached: int = 0
    begins: int = 0
    leaving: bool = False
    slow_s: float = 0.0
    silent: bool = False
    pace: Pace = field(default_factory=Pace)
    born: int = 0
    filling: bool = False

    @property
    def peer_id(self) -> str:
        """Who serves it."""
        return self.hop.peer_id

    @property
    def lacks(self) -> bool:
        """Whether it may lack what it is being refilled with: it has run no step yet."""
        return self.filling and self.seen < 0

    def opened(self, cached: int) -> bool:
        """It confirmed the current epoch; False if it says that it holds what it cannot."""
        if self.fresh:
            self.cached = cached
        self.ready = not self.fresh or (cached <= self.offered and not cached % PREFIX_TOKENS)
        return self.ready


class Chain:
    """Links in order of their blocks, and what to tell them under the current epoch."""

    def __init__(self, terms: SessionTerms) -> None:
        self.terms = terms
        self.links: list[Link] = []
        self.epoch = 0
        self.left: set[str] = set()  # peers whose hops were taken out since the last answer
        self._apart: set[tuple[str, str]] = set()  # pairs whose boundary the client carries

    def index_of(self, peer_id: str) -> int | None:
        """Where a peer stands, or None."""
        for index, link in enumerate(self.links):
            if link.hop.peer_id == peer_id:
                return index
        return None

    def is_last(self, index: int) -> bool:
        """Whether the route ends there."""
        return index == len(self.links) - 1

    def hops(self) -> tuple[Hop, ...]:
        """The route."""
        return tuple(link.hop for link in self.links)

    def skip(self) -> int:
        """Tokens of the prompt that every hop holds, so that no step brings them and nobody keeps outputs of them."""
        cached = min(link.cached for link in self.links)
        for link in self.links:
            link.begins = cached
        return cached

    def rewound(self, position: int) -> None:
        """The next step runs from `position`, so that kept outputs begin there at the latest."""
        for link in self.links:
            link.begins = min(link.begins, position)

    def refillable(self, start: int) -> int:
        """The nearest block at or before `start` from which new hops can be refilled: `start` itself if the hop before
        it keeps its outputs from position 0 on, else the first block, which the client refills."""
        gap = any(link.begins for link in self.links if link.hop.stop == start)
        return self.terms.start if gap else start

    def given_up(self, lost: Link, *, refilling: bool) -> list[tuple[int, int]]:
        """Blocks that are planned anew with a lost hop's: those of an unfinished repair and, if hops may still be
        `refilling`, of its neighbours that lack something: what was to fill these is gone with it, or they hold too
        little to fill its successor."""
        at = self.links.index(lost)
        first = last = at
        while refilling and first and self.links[first - 1].lacks:
            first -= 1
        while refilling and not self.is_last(last) and self.links[last + 1].lacks:
            last += 1
        gone = (link.hop for i, link in enumerate(self.links) if first <= i <= last or link.fresh)
        return [(hop.start, hop.stop) for hop in gone]

    def lacking(self) -> bool:
        """Whether a hop may lack what it is being refilled with."""
        return any(link.lacks for link in self.links)

    def settle(self, *, refills: bool) -> None:
        """Every hop is ready; the new ones are sent what came before, if that `refills` anything."""
        for link in self.links:
            link.fresh, link.filling = False, link.filling or (link.fresh and refills)

    def filled(self) -> None:
        """A step was answered, so every hop has run it."""
        self.left.clear()
        for link in self.links:
            link.filling = False

    def insert(self, hops: Iterable[Hop], start: int, stop: int) -> bool:
        """Put new hops in the place of blocks `[start, stop)`; True if other hops survive."""
        before = [link for link in self.links if link.hop.stop <= start]
        after = [link for link in self.links if link.hop.start >= stop]
        for link in (*before, *after):
            link.fresh = link.ready = False
        self.links = [*before, *(Link(hop, born=self.epoch) for hop in hops), *after]
        self._apart = self._pairs_apart()
        return bool(before or after)

    def late(self, first: int) -> Link:
        """Who is waited for: a hop that was asked and has not confirmed the epoch, or else the first that has not run
        step `first`, the oldest in flight. The last hop, if all say that they did: its answer is missing."""
        waiting = [link for link in self.links if link.fresh and not link.ready]
        waiting += [link for link in self.links if not link.ready]
        silent = (link for link in self.links if link.seen < first)
        return waiting[0] if waiting else next(silent, self.links[-1])

    def carried(self, index: int) -> str | None:
        """The peer to which the client must pass on what hop `index` sends; None where they talk to one another."""
        if not self._apart:
            return None
        pair = tuple(link.peer_id for link in self.links[index : index + 2])
        return pair[1] if pair in self._apart else None

    def direct(self, index: int) -> bool:
        """Whether hop `index` sends to a next one by itself."""
        return not self.is_last(index) and self.carried(index) is None

    def bridge(self, index: int) -> list[Hop]:
        """From the next epoch on carry what goes from hop `index` to the next one.

        Returns the hops to open anew, since what was to fill them may be lost; they are taken out.
        """
        self._apart.add((self.links[index].peer_id, self.links[index + 1].peer_id))
        self.epoch += 1
        at = self.links[index + 1].hop.start
        empty = [link.hop for link in self.links if link.seen < 0]
        start = self.refillable(min(hop.start for hop in empty)) if empty else at
        stop = max((hop.stop for hop in empty), default=at)
        hops = [hop for hop in self.hops() if start <= hop.start < stop]
        self.remove(start, stop)
        return hops

    def expect(self, route: Route) -> None:
        """Note what a route promised of its hops, which are fresh now."""
        blocks = sum(hop.stop - hop.start for hop in route.hops)
        for link in self.links:
            if link.fresh and route.token_s:
                link.pace = Pace(route.token_s * (link.hop.stop - link.hop.start) / blocks)

    def with_hops(self, hops: Iterable[Hop], start: int, stop: int, epoch: int) -> Chain:
        """The chain as it is to be with new hops in the place of `[start, stop)`; this one stays as it is."""
        new = Chain(self.terms)
        before = [link for link in self.links if link.hop.stop <= start]
        after = [link for link in self.links if link.hop.start >= stop]
        new.links, new.epoch = [*before, *(Link(hop, born=epoch) for hop in hops), *after], epoch
        new._apart = set(self._apart)
        new._apart = new._pairs_apart()
        return new

    def remove(self, start: int, stop: int) -> list[str]:
        """Take the hops within `[start, stop)` out; their peers."""
        gone = [link for link in self.links if start <= link.hop.start < stop]
        self.links = [link for link in self.links if link not in gone]
        self.left |= {link.peer_id for link in gone}
        return [link.peer_id for link in gone]

    def open(self, index: int, next_step: int, *, offer: bool) -> Open:
        """Ask a hop for its lease; with `offer`, name the prompt's beginnings, which it may hold from before."""
        prev, after, addrs = self._neighbours(index)
        link, last, terms = self.links[index], index == len(self.links) - 1, self.terms
        hop, keys = link.hop, terms.prefix.keys(self.hops()[:index]) if offer and terms.prefix is not None else ()
        link.offered = PREFIX_TOKENS * len(keys)
        return Open(
            session=terms.session, epoch=self.epoch, namespace=terms.namespace, revision=terms.revision,
            start=hop.start, stop=hop.stop, max_tokens=terms.max_tokens, next_step=next_step, dtype=terms.dtype,
            prev=prev, next=after, next_addrs=addrs, final=last,
            forward_replay=not last and self.links[index + 1].fresh, proof=terms.prove(hop.peer_id),
            priority=terms.priority, prefix=keys,
        )  # fmt: skip

    def reroute(self, index: int, replay_to: int) -> Reroute:
        """Tell a survivor its neighbours; it refills a new one behind it up to `replay_to`."""
        prev, after, addrs = self._neighbours(index)
        refill = index + 1 < len(self.links) and self.links[index + 1].fresh
        return Reroute(
            session=self.terms.session, epoch=self.epoch, prev=prev, next=after, next_addrs=addrs,
            replay_to=replay_to if refill else 0,
        )  # fmt: skip

    def close(self, prefix: tuple[bytes, ...] = ()) -> Close:
        """End a lease; what it holds may be found again under the names `prefix`."""
        return Close(session=self.terms.session, epoch=self.epoch, prefix=prefix)

    def names(self, index: int, held: Prefix) -> tuple[bytes, ...]:
        """The names of what a hop holds. None where it, or one before it, is older than a hop before that: that one's
        predecessor, which may have computed in another way, has part in its KV, or in what it was refilled with."""
        if any(before.born > after.born for before, after in pairwise(self.links[: index + 1])):
            return ()
        return held.keys([link.hop for link in self.links[:index]])

    def hidden(self, step: Step, *, replay: bool = False) -> Hidden:
        """A step's input for the first hop."""
        return Hidden(
            session=self.terms.session, epoch=self.epoch, step=step.number, position=step.position, count=step.count,
            want=step.want, replay=replay, rows=step.count, width=self.terms.width, dtype=self.terms.dtype,
            length=step.length, payload=step.payload,
        )  # fmt: skip

    def _pairs_apart(self) -> set[tuple[str, str]]:
        pairs = pairwise(link.peer_id for link in self.links)
        return {pair for pair in pairs if pair in self._apart or self.terms.apart(*pair)}

    def _neighbours(self, index: int) -> tuple[str, str, tuple[str, ...]]:
        prev = self.links[index - 1].peer_id if index and self.direct(index - 1) else ""
        after = self.links[index + 1].peer_id if self.direct(index) else ""
        return prev, after, self.terms.addrs(after)[:8] if after else ()
