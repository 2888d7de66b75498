"""A session that also moves: away from hops that want to leave or have become slow, while they still serve. Sans-IO.

    a hop says that it leaves, or is found slow or silent (`tempo`)
      -> a plan is asked for; without one everything stays, and it is asked for again a second later
      -> the new hops are opened under an epoch to come (`handover`); if one refuses or dies, everything stays
      -> the old hop's lease is closed, survivors are told their new neighbours and refill the new hops: from here on it
         is the repair that `session` makes after a loss, and the user waits for the refill alone

Only a hop that leaves has to be left: where none but the survivors could serve in its place, the whole route is planned
anew. Nobody is blamed for leaving, or for being slow.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from shoal.client.actions import Apart, Blame, Plan, Send, State, at_once
from shoal.client.handover import RETRY_S, Handover
from shoal.client.session import Session
from shoal.client.tempo import Tempo
from shoal.peer.errors import HopClosed, HopRefused, HopTimedOut, Reason
from shoal.peer.wire import Hidden, Leaving, Receipt
from shoal.routing.route import NoRoute

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.client.actions import Action, PutOff, Recall, SessionTerms
    from shoal.client.chain import Link
    from shoal.peer.errors import HopError
    from shoal.peer.wire import Buffer, Message, Want
    from shoal.routing.route import Route


class MovingSession(Session):
    """See `Session`; `on_ahead` answers a `Plan` that is `ahead`."""

    def __init__(self, terms: SessionTerms, recall: Recall, put_off: PutOff = at_once) -> None:
        super().__init__(terms, recall, put_off)
        self._handover, self._tempo = Handover(), Tempo()
        self._told = 0  # the newest epoch that a hop was told ahead

    def step(self, count: int, want: Want, payload: Buffer, now: float, length: int = 0) -> tuple[int, list[Action]]:
        """See `Session`."""
        number, actions = super().step(count, want, payload, now, length)
        alone = bool(actions) and not length and len(self._steps) == 1
        self._put_off(partial(self._tempo.sent, number, now, alone=alone, rows=count))
        return number, actions

    def close(self, token_ids: Sequence[int] = ()) -> list[Action]:
        """See `Session`."""
        return [*self._handover.drop(), *super().close(token_ids)]

    def on_route(self, route: Route, now: float) -> list[Action]:
        """See `Session`."""
        actions = super().on_route(route, now)
        self._chain.expect(route)
        return actions

    @property
    def ours(self) -> frozenset[str]:
        """Peers with leases of this session, or that were given up since its last answer and may hold theirs yet."""
        return frozenset(self._chain.left) | {hop.peer_id for hop in self.route()}

    @property
    def must_move(self) -> bool:
        """Whether a plan for a hop that leaves is under way, and still of use: survivors may be given up for it."""
        return self.state is State.STREAMING and self._handover.forced

    def on_ahead(self, found: Route | NoRoute, now: float) -> list[Action]:
        """Hops for the place of one that still serves were looked for."""
        if self.state is not State.STREAMING or not self._handover.planning:
            return []
        if isinstance(found, NoRoute) or not self._handover.worth(found):
            return self._stay(now)
        self._told = max(self._told, self._chain.epoch) + 1
        due = now + self.terms.open_timeout_s
        return self._handover.open(self._chain, found, self._told, self._steps.first(), due)

    def on_message(self, peer_id: str, message: Message, now: float) -> list[Action]:
        """See `Session`."""
        if (new := self._handover.fresh(peer_id)) is not None:
            return self._on_new_hop(new, message, now)
        index = self._chain.index_of(peer_id)
        spoke = [] if index is None else self._heard(index, message, now)
        return [*spoke, *super().on_message(peer_id, message, now), *self._seek()]

    def _heard(self, index: int, message: Message, now: float) -> list[Action]:
        link = self._chain.links[index]
        if isinstance(message, Leaving):
            self._leaves(link)
        elif getattr(message, "epoch", -1) != self._chain.epoch:
            return []
        if isinstance(message, Receipt):
            self._tempo.receipt(self._chain.links, index, message.step, now)
        if isinstance(message, Hidden) and self._chain.is_last(index):
            self._tempo.answered(message.step)
        return self._handover.spoke(link) if link.silent else []

    def _leaves(self, link: Link) -> None:
        link.leaving = True
        self.avoided.failed(link.peer_id)

    def on_closed(self, peer_id: str, why: str, now: float = 0.0) -> list[Action]:
        """See `Session`."""
        if self._handover.fresh(peer_id) is not None:
            error = HopClosed(peer_id, why)
            return [Blame(error), *self._stay(now, dead=peer_id)]
        return super().on_closed(peer_id, why)

    def without(self, peer_id: str) -> Plan:
        """A plan for all blocks over links that stand, without a peer that takes long to let us in."""
        terms = self.terms
        return Plan(terms.start, terms.stop, frozenset({*self.avoided.peers, peer_id}), None, None, here=True)

    def on_late(self, peer_id: str) -> list[Action]:
        """The link to a hop may stand yet, but others can serve sooner: that is nobody's fault."""
        index = self._chain.index_of(peer_id)
        if index is None:
            return []
        error = HopTimedOut(peer_id, f"{peer_id} did not answer in time")
        return [action for action in self._lose(self._chain.links[index], error) if not isinstance(action, Blame)]

    def deadline(self) -> float | None:
        """See `Session`."""
        dues = (super().deadline(), self._handover.due, self._hush_due())
        return min((due for due in dues if due is not None), default=None)

    def _hush_due(self) -> float | None:
        return self._tempo.due(self._chain.links) if self.state is State.STREAMING else None

    def on_timer(self, now: float) -> list[Action]:
        """See `Session`."""
        if (due := self._hush_due()) is not None and now >= due:
            self._tempo.hushed()
            self._chain.late(self._steps.first()).silent = True
            return self._seek()
        if self._handover.due is None or now < self._handover.due:
            return super().on_timer(now)
        silent = self._handover.silent()
        if silent is None:
            self._handover.drop()
            return self._seek()
        error = HopTimedOut(silent, f"{silent} did not answer in time")
        return [Blame(error), *self._stay(now)]

    def _seek(self) -> list[Action]:
        """Ask for hops in the place of one that had better go; if some are being refilled, once they are."""
        settled = self.state is State.STREAMING and not (self._steps.refills() and self._chain.lacking())
        link = self._handover.wanted(self._chain) if settled else None
        return [] if link is None else [self._handover.plan(self._chain, link, frozenset(self.avoided.peers))]

    def _stay(self, now: float, dead: str = "") -> list[Action]:
        """Nothing comes of it now. A hop that leaves is tried again soon; a slow one only if it is found slow again."""
        for link in self._chain.links:
            link.slow_s, link.silent = 0.0, False
        return self._handover.drop(dead, now + RETRY_S)

    def _on_new_hop(self, link: Link, message: Message, now: float) -> list[Action]:
        peer_id = link.peer_id
        if isinstance(message, Leaving):
            self._leaves(link)  # it serves still: once it has its place, others are looked for
            return []
        error = self._handover.on_message(peer_id, message)
        if error is not None and (target := self._handover.cut_off(peer_id, error)) is not None:
            return [Apart(peer_id, target), *self._stay(now)]  # the next attempt knows
        if error is not None:
            self.avoided.failed(peer_id)
            return [Blame(error), *self._stay(now)]
        return self._move(now) if self._handover.complete() else []

    def _move(self, now: float) -> list[Action]:
        """Every new hop is open: put them into the route. Those who stay are told, and refill them."""
        new = self._handover.take()
        if new is None:
            return []
        old, self._chain = self._chain, new
        gone = [link for link in old.links if link not in new.links]
        for link in gone:
            self.avoided.failed(link.peer_id)
        stay = [index for index, link in enumerate(new.links) if not link.fresh]
        for index in stay:
            new.links[index].ready = False
        self.stats.moves += 1
        self._tempo.forget()
        self.state, self._deadline = State.REPAIRING, now + self.terms.open_timeout_s
        closes = [Send(link.peer_id, new.close()) for link in gone]
        reroutes = [self._send(index, new.reroute(index, self._steps.replay_to())) for index in stay]
        return [*closes, *reroutes] if stay else [*closes, *self._stream(now)]

    def _lose(self, lost: Link, error: HopError) -> list[Action]:
        actions = super()._lose(lost, error)
        if isinstance(error, HopRefused) and error.reason is Reason.BUSY:
            self._chain.left.discard(lost.peer_id)  # it holds nothing of ours
        return [action for action in actions if not (lost.leaving and isinstance(action, Blame))]

    def _bridge(self, index: int, now: float) -> list[Action]:
        self._chain.epoch = max(self._told, self._chain.epoch)
        self._tempo.forget()
        return [*self._handover.drop(), *super()._bridge(index, now)]

    def _replan(self, start: int, stop: int, dead: str = "") -> list[Action]:
        self._chain.epoch = max(self._told, self._chain.epoch)
        self._tempo.forget()
        return [*self._handover.drop(dead), *super()._replan(start, stop, dead)]
