"""The leases of one peer: who may open one, what it gets, what is given back. Sans-IO: no sockets, tensors or clock.

Admission happens once, before the first token: all leases together fit into the device's pages and those of host
memory, so none runs dry. Who has which page at a time is the residency's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.peer.errors import Reason
from shoal.peer.giving import NEWCOMER, Shares, side_of
from shoal.peer.kept import KeptBudget
from shoal.peer.lease import Lease, Terms
from shoal.peer.residency import Residency
from shoal.peer.wire import Refused, names_session_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.peer.pages import PageAllocator
    from shoal.peer.wire import Open

BUSY_RETRY_S = 2.0


@dataclass(frozen=True, slots=True)
class Offer:
    """What this peer serves. `check_proof(proof, client_id, session)` holds the swarm's secret."""

    namespace: bytes
    revision: str
    start: int
    stop: int
    width: int
    n_pages: int
    page_tokens: int
    check_proof: Callable[[bytes, str, bytes], bool]
    context: int = 1 << 62  # positions that the model knows


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what clients may claim."""

    leases: int = 512
    leases_per_client: int = 128
    kept_bytes_per_lease: int = 64 * 1024 * 1024
    kept_bytes: int = 1024 * 1024 * 1024
    grace_s: float = 5.0
    swap_pages: int = 0  # KV pages in host memory for leases that make room
    step_pages: int = 1 << 62  # of these, as many as come back before one engine step: all in it wait for them


class LeaseBook:
    """All leases by session. A client takes a hop for lost with its link, so the leases of a lost link are not used
    again, even if the client comes back: they live on for `limits.grace_s`, then `sweep` ends them."""

    def __init__(self, offer: Offer, limits: Limits = Limits()) -> None:
        self.offer = offer
        self.limits = limits
        self.draining = False  # for good: this peer leaves
        self.paused = False  # until its volunteer, or the machine's idleness, says otherwise
        self.opened = 0  # leases since the start
        self.residency = Residency(offer.n_pages, offer.page_tokens, limits.swap_pages, limits.step_pages)
        self.kept = KeptBudget(limits.kept_bytes)
        self.leases: dict[bytes, Lease] = {}
        self._orphans: dict[bytes, float] = {}  # session -> when its lease ends
        self._gone: dict[bytes, Lease] = {}  # that gave way, as many as there may be leases

    @property
    def free_tokens(self) -> int:
        """Positions that a new lease could still get: all of it must fit onto the device at once."""
        free = self.residency.total - self.residency.committed
        return min(free, self.offer.n_pages) * self.offer.page_tokens

    def room_tokens(self, now: float) -> int:
        """As `free_tokens`, for a client that has nothing here, to which idle leases give way."""
        residency = self.residency
        shares = Shares(self.leases.values(), _pages_of, residency.total, NEWCOMER)
        room = shares.room(residency.total - residency.committed, now)
        return min(room, self.offer.n_pages) * self.offer.page_tokens

    @property
    def pages(self) -> PageAllocator:
        """The pages of the device."""
        return self.residency.pages

    def clients(self) -> set[str]:
        """Clients that hold leases."""
        return {lease.owner for lease in self.leases.values()}

    def open(
        self, request: Open, client: str, link: int = 0, network: str | None = None, now: float = 0.0
    ) -> Lease | Refused:
        """A new lease for a client of a network that asks over `link`, or why not."""
        if (refused := self._check(request, client)) is not None:
            return refused
        scope = client, request.start, request.stop
        holding = self.residency.open(request.max_tokens, request.priority, scope, request.prefix)
        if holding is None:
            free = self.residency.total - self.residency.committed
            text = f"{self.free_tokens} of {request.max_tokens} tokens are free, in {free} pages"
            return _refusal(request, Reason.BUSY, text, BUSY_RETRY_S)
        kept_bytes = self.limits.kept_bytes_per_lease
        lease = Lease(request, Terms(client, holding, self.offer.width, kept_bytes, self.kept, link, network))
        lease.heard = now
        self.leases[request.session] = lease
        self._gone.pop(request.session, None)
        self.opened += 1
        return lease

    def giving_way(self, request: Open, client: str, network: str | None, now: float) -> list[Lease]:
        """Idle leases that give way to one that was refused as `BUSY`, so that it fits; none if that cannot be."""
        leases, residency, side = self.leases.values(), self.residency, side_of(client, network)
        if self._held(client) >= self.limits.leases_per_client:
            return []
        need = residency.pages_for(request.max_tokens)
        if (lacking := residency.committed + need - residency.total) > 0:
            return Shares(leases, _pages_of, residency.total, side).giving(need, lacking, now)
        return Shares(leases, lambda _lease: 1, self.limits.leases, side).giving(1, 1, now)

    def gave_way(self, lease: Lease) -> None:
        """A lease was ended for another one: its owner is told if it comes back to it."""
        lease.gave_way = True
        self._gone[lease.session] = lease
        if len(self._gone) > self.limits.leases:
            del self._gone[next(iter(self._gone))]

    def addressed(self, session: bytes) -> Lease | None:
        """A lease by session, or what is known of one that gave way."""
        return self.leases.get(session) or self._gone.get(session)

    def find(self, session: bytes, client: str | None = None) -> Lease | None:
        """A lease by session; with `client`, only if that client owns it."""
        lease = self.leases.get(session)
        return lease if lease is not None and client in (None, lease.owner) else None

    def detach(self, lease: Lease) -> None:
        """End a lease. Its room may be promised to another one, such as its own session's next: a step for that one is
        formed only after `free` has given the pages back, on which something may run until then."""
        del self.leases[lease.session]
        self._orphans.pop(lease.session, None)
        self.residency.leave(lease.holding)

    def free(self, lease: Lease) -> None:
        """Give the pages of a detached lease back."""
        self.residency.close(lease.holding)
        lease.kept.clear()

    def link_lost(self, link: int, now: float) -> None:
        """A client's link is gone: the leases that were opened over it end after the grace."""
        for lease in self.leases.values():
            if lease.terms.link == link:
                self._orphans.setdefault(lease.session, now + self.limits.grace_s)

    def sweep(self, now: float) -> list[Lease]:
        """Leases whose link was lost the grace ago."""
        return [self.leases[session] for session, end in self._orphans.items() if end <= now]

    def _check(self, request: Open, client: str) -> Refused | None:
        offer = self.offer
        if request.namespace != offer.namespace or request.revision != offer.revision:
            return _refusal(request, Reason.WRONG_MODEL, f"this peer serves revision {offer.revision} of another model")
        if not offer.check_proof(request.proof, client, request.session):
            return _refusal(request, Reason.FORBIDDEN, "no proof of this swarm's secret")
        if not names_session_of(client, request.session):
            return _refusal(request, Reason.FORBIDDEN, "that session's name is not one of yours")
        if not offer.start <= request.start < request.stop <= offer.stop:
            return _refusal(request, Reason.NO_SUCH_BLOCKS, f"this peer serves blocks {offer.start}:{offer.stop}")
        if self.draining:
            return _refusal(request, Reason.DRAINING, "this peer is leaving the swarm")
        if self.paused:
            return _refusal(request, Reason.DRAINING, "this peer is paused by its volunteer")
        return self._check_limits(request, client)

    def _check_limits(self, request: Open, client: str) -> Refused | None:
        if request.session in self.leases:
            return _refusal(request, Reason.FORBIDDEN, "that session is open already")
        if request.max_tokens > self.offer.context:
            text = f"{request.max_tokens} tokens are more than the model's context of {self.offer.context}"
            return _refusal(request, Reason.LIMIT, text)
        if request.max_tokens > self.offer.n_pages * self.offer.page_tokens:
            text = f"{request.max_tokens} tokens are more than this peer's KV can ever hold"
            return _refusal(request, Reason.LIMIT, text)
        if self._held(client) >= self.limits.leases_per_client or len(self.leases) >= self.limits.leases:
            return _refusal(request, Reason.BUSY, "all leases are taken", BUSY_RETRY_S)
        return None

    def _held(self, client: str) -> int:
        return sum(lease.owner == client for lease in self.leases.values())


def _pages_of(lease: Lease) -> int:
    return lease.holding.max_pages


def _refusal(request: Open, reason: Reason, text: str, retry_s: float = 0.0) -> Refused:
    return Refused(session=request.session, epoch=request.epoch, reason=reason, text=text, retry_s=retry_s)
