"""Hops that take the place of one that still serves: planned and opened beside it, and only then put into the route.

Sans-IO: data and messages only. A hop is moved away from because it wants to leave, because it has become slow, or
because nothing is heard of it: if it speaks again before the others are ready, it stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.client.actions import Plan, Send
from shoal.peer.errors import HopRefused, Reason
from shoal.peer.wire import Opened, Refused

if TYPE_CHECKING:
    from shoal.client.actions import Action
    from shoal.client.chain import Chain, Link
    from shoal.peer.errors import HopError
    from shoal.peer.wire import Message
    from shoal.routing.route import Route

RETRY_S = 1.0


class Handover:
    """At most one attempt at a time. `chain`: the route as it is to be, once its new hops are asked for leases."""

    def __init__(self) -> None:
        self.chain: Chain | None = None
        self._span = (0, 0)
        self._worth_s: float | None = None
        self._hushed: Link | None = None  # whose silence the attempt is for
        self._leaves = False  # whom it is for
        self._planning = False
        self._due: float | None = None  # when to try again, or when new hops must have confirmed

    @property
    def planning(self) -> bool:
        """Whether a plan was asked for."""
        return self._planning

    @property
    def forced(self) -> bool:
        """Whether a plan was asked for, and for a hop that has to be left, whatever that costs."""
        return self._planning and self._leaves

    @property
    def due(self) -> float | None:
        """When `Session.on_timer` is to look at it."""
        return self._due

    def wanted(self, chain: Chain) -> Link | None:
        """The hop to be replaced next, if none is being replaced or has just turned out not to be replaceable."""
        if self._planning or self._due is not None:
            return None
        wanted = [link for link in chain.links if link.silent or link.leaving or link.slow_s]
        return min(wanted, key=lambda link: (not link.silent, not link.leaving), default=None)

    def plan(self, chain: Chain, link: Link, failed: frozenset[str]) -> Plan:
        """Ask for hops in the place of `link`, and of those before it that could not refill them."""
        start, stop = self._span = chain.refillable(link.hop.start), link.hop.stop
        self._planning, self._leaves, self._hushed = True, link.leaving, link if link.silent else None
        gone = [other for other in chain.links if start <= other.hop.start < stop]
        worth_s = None if link.leaving or link.silent else sum(other.slow_s or other.pace.expected_s for other in gone)
        self._worth_s = worth_s
        hops = chain.hops()
        return Plan(
            start, stop, failed | frozenset(hop.peer_id for hop in hops),
            upstream=next((hop.peer_id for hop in hops if hop.stop == start), None),
            downstream=next((hop.peer_id for hop in hops if hop.start == stop), None),
            ahead=True, worth_s=worth_s,
        )  # fmt: skip

    def worth(self, route: Route) -> bool:
        """Whether a route that was found is good enough."""
        return self._worth_s is None or route.token_s <= self._worth_s

    def open(self, chain: Chain, route: Route, epoch: int, first: int, due: float) -> list[Action]:
        """Ask the new hops for leases under `epoch`, `first` the oldest step that they may be asked for."""
        self._planning, self._due = False, due
        new = self.chain = chain.with_hops(route.hops, *self._span, epoch)
        new.expect(route)
        fresh = [index for index, link in enumerate(new.links) if link.fresh]
        return [Send(new.links[index].peer_id, new.open(index, first, offer=False)) for index in fresh]

    def on_message(self, peer_id: str, message: Message) -> HopError | None:
        """A new hop spoke; what is wrong with it, if anything."""
        link = self.fresh(peer_id)
        if self.chain is None or link is None or getattr(message, "epoch", -1) != self.chain.epoch:
            return None
        if isinstance(message, Refused):
            return HopRefused(peer_id, message.reason, f"{peer_id} refused: {message.text}")
        if isinstance(message, Opened) and not link.opened(message.cached):
            return HopRefused(peer_id, Reason.BAD_OUTPUT, f"{peer_id} says that it holds what it was not asked about")
        return None

    def cut_off(self, peer_id: str, error: HopError) -> str | None:
        """The hop that a new one says it cannot reach, if that is what is wrong."""
        index = self.chain.index_of(peer_id) if self.chain is not None else None
        if self.chain is None or index is None or self.chain.is_last(index):
            return None
        lost = isinstance(error, HopRefused) and error.reason is Reason.NEXT_HOP_LOST
        return self.chain.links[index + 1].peer_id if lost else None

    def fresh(self, peer_id: str) -> Link | None:
        """The new hop that a peer is to be, if it is one."""
        if self.chain is None:
            return None
        return next((link for link in self.chain.links if link.fresh and link.peer_id == peer_id), None)

    def complete(self) -> bool:
        """Whether every new hop has confirmed."""
        return self.chain is not None and all(link.ready for link in self.chain.links if link.fresh)

    def silent(self) -> str | None:
        """A new hop that has not confirmed, if any was asked."""
        links = self.chain.links if self.chain is not None else []
        return next((link.peer_id for link in links if link.fresh and not link.ready), None)

    def spoke(self, link: Link) -> list[Action]:
        """A silent hop is there after all."""
        link.silent = False
        return self.drop() if link is self._hushed else []

    def take(self) -> Chain | None:
        """The route as it is to be; the attempt is over."""
        chain, self.chain, self._due, self._hushed = self.chain, None, None, None
        return chain

    def drop(self, dead: str = "", retry: float | None = None) -> list[Action]:
        """Give the attempt up and the new hops' leases back; the next one not before `retry`."""
        chain, self.chain, self._planning, self._due, self._hushed = self.chain, None, False, retry, None
        gone = [link.peer_id for link in chain.links if link.fresh] if chain is not None else []
        return [Send(peer_id, chain.close()) for peer_id in gone if chain is not None and peer_id != dead]
