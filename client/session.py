"""A generation over a route: opens hops, numbers steps, and mends the route when hops fail. Sans-IO: no sockets, no
tensors, no clock; it is fed events and returns what is to be done.

    OPENING     a route was found; every hop was asked for a lease
    STREAMING   steps flow
    PLANNING    hops are lost (or none were found yet): a plan for `lost` was asked for
    REPAIRING   new hops were asked for leases, then the survivors are told their new neighbours
    CLOSED      ended, or failed for good

Repair is one mechanism for every loss: the lost span is planned anew; the upstream survivor (or the client, from its
own inputs) refills the new hops' KV up to the first step that is not answered yet; then those steps are sent again
under their old numbers, and survivors that had run them answer the same.

Where the hops held the prompt's beginning from before, steps begin behind it and outputs of it are kept nowhere: a
survivor cannot refill, so the hops before a loss are given up with it and refilled from the client's own inputs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from shoal.client.actions import Apart, Blame, Deliver, GiveUp, Plan, Send, SessionStats, State, at_once
from shoal.client.avoided import Avoided
from shoal.client.chain import Chain, Link
from shoal.client.steps import Steps
from shoal.client.watch import Watch
from shoal.peer.errors import HopClosed, HopRefused, HopTimedOut, Reason
from shoal.peer.wire import Hidden, Opened, Receipt, Refused, Want

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.client.actions import Action, PutOff, Recall, SessionTerms
    from shoal.peer.errors import HopError
    from shoal.peer.wire import Buffer, Message
    from shoal.routing.route import Hop, Route

MAX_STARTS_OVER = 16
_START_OVER = frozenset({Reason.NO_REPLAY, Reason.GAP})  # of the lease's history, not of the peer: all is opened anew


class Session:
    """The state machine. `recall(a, b)` gives the inputs of positions `[a, b)` again; `put_off` takes what can wait."""

    def __init__(self, terms: SessionTerms, recall: Recall, put_off: PutOff = at_once) -> None:
        self.terms = terms
        self.state = State.PLANNING
        self.stats = SessionStats()
        self.last_error: HopError | None = None
        self._recall, self._put_off = recall, put_off
        self._chain = Chain(terms)
        self._steps, self._watch = Steps(terms.max_tokens), Watch(terms.token_bytes)
        self._lost = (terms.start, terms.stop)
        self._begun = False  # a step was asked for, or hops are open and said what they hold
        self.avoided = Avoided()
        self._starts_over = 0  # since the last answer
        self._deadline: float | None = None

    # -- what the caller wants ------------------------------------------------------------------------------------

    def begin(self) -> list[Action]:
        """Ask for a first route."""
        return [self._plan()]

    def step(self, count: int, want: Want, payload: Buffer, now: float, length: int = 0) -> tuple[int, list[Action]]:
        """Number and send one step of `count` tokens at `position`, part of a prompt that ends at `length` (0: here).

        Errors: `ValueError` past the agreed tokens.
        """
        step, self._begun = self._steps.add(count, want, payload, length), True
        self.stats.steps += 1
        if self.state is not State.STREAMING:
            return step.number, []
        lone = step.number if count == 1 and len(self._steps) == 1 else -1
        self._put_off(partial(self._watch.sent, self.stats, self.route(), lone, now))
        self._deadline = self._deadline or now + self.terms.step_timeout_s
        return step.number, [self._send(0, self._chain.hidden(step))]

    @property
    def position(self) -> int:
        """Tokens in the KV. Once every hop is open this may jump from 0 to where their knowledge of the prompt ends."""
        return self._steps.position

    def rewind(self, position: int) -> None:
        """Set the position back; the next step overwrites what lay behind it. Errors: `ValueError`."""
        self._steps.rewind(position)
        self._begun = True
        self._chain.rewound(position)
        if not self.stats.steps:
            self.stats.cached_tokens = min(self.stats.cached_tokens, position)

    def full(self) -> bool:
        """As many steps are in flight as hops remember."""
        return self._steps.full()

    def close(self, token_ids: Sequence[int] = ()) -> list[Action]:
        """End the session and free every lease. `token_ids`: what it was about, if the hops shall remember it."""
        self.state, self._deadline = State.CLOSED, None
        self._watch.sent(self.stats, self.route(), -1, 0.0)
        held, links = token_ids[: self._steps.replay_to()], range(len(self._chain.links))
        if self.terms.prefix is None or not held:
            return [self._send(i, self._chain.close()) for i in links]
        prefix = self.terms.prefix.after(held)
        return [self._send(i, self._chain.close(self._chain.names(i, prefix))) for i in links]

    def route(self) -> tuple[Hop, ...]:
        """The hops in use now."""
        return self._chain.hops()

    def on_route(self, route: Route, now: float) -> list[Action]:
        """Hops for the lost span were found: open them."""
        if self.state is not State.PLANNING:
            return []
        return self._open(route.hops, now)

    def _open(self, hops: Sequence[Hop], now: float) -> list[Action]:
        """Put hops in the place of the lost ones and ask them for leases; if there are none, tell the survivors."""
        survivors = self._chain.insert(hops, *self._lost)
        self.state = State.REPAIRING if survivors else State.OPENING
        self._deadline = now + self.terms.open_timeout_s
        offer, first = not self._begun and not survivors, self._steps.first()
        fresh = [index for index, link in enumerate(self._chain.links) if link.fresh]
        return [self._send(i, self._chain.open(i, first, offer=offer)) for i in fresh] or self._reroute()

    def on_message(self, peer_id: str, message: Message, now: float) -> list[Action]:
        """A hop spoke."""
        index = self._chain.index_of(peer_id)
        if index is None or self.state is State.CLOSED or getattr(message, "epoch", -1) != self._chain.epoch:
            return []
        if isinstance(message, Opened):
            return self._on_opened(index, message, now)
        if isinstance(message, Refused):
            return self._on_refused(index, message, now)
        if isinstance(message, Hidden):
            return self._on_hidden(index, message, now)
        if isinstance(message, Receipt):
            return self._on_receipt(index, message, now)
        return []

    def on_closed(self, peer_id: str, why: str) -> list[Action]:
        """The link to a peer ended or could not be opened."""
        index = self._chain.index_of(peer_id)
        return [] if index is None else self._lose(self._chain.links[index], HopClosed(peer_id, why))

    def deadline(self) -> float | None:
        """When `on_timer` wants to be called."""
        return self._deadline

    def on_timer(self, now: float) -> list[Action]:
        """Hops that were silent past the deadline are lost."""
        if self._deadline is None or now < self._deadline or self.state in (State.CLOSED, State.PLANNING):
            return []
        late = self._chain.late(self._steps.first())
        return self._lose(late, HopTimedOut(late.peer_id, f"{late.peer_id} did not answer in time"))

    # -- opening and repair ---------------------------------------------------------------------------------------

    def _on_opened(self, index: int, message: Opened, now: float) -> list[Action]:
        if self.state not in (State.OPENING, State.REPAIRING):
            return []
        links, link = self._chain.links, self._chain.links[index]
        if not link.opened(message.cached):
            text = f"{link.peer_id} says that it holds tokens that it was not asked about"
            return self._lose(link, HopRefused(link.peer_id, Reason.BAD_OUTPUT, text))
        if any(link.fresh and not link.ready for link in links):
            return []
        if all(link.ready for link in links):
            return self._stream(now)
        return self._reroute() if link.fresh else []  # the last new hop is ready: now the survivors may be told

    def _reroute(self) -> list[Action]:
        """Tell the survivors their new neighbours."""
        waiting, to = [i for i, link in enumerate(self._chain.links) if not link.ready], self._steps.replay_to()
        return [self._send(i, self._chain.reroute(i, to)) for i in waiting]

    def _stream(self, now: float) -> list[Action]:
        """Every hop is ready: refill a new first hop from the client's inputs, then send what is in flight again."""
        replays = self._steps.replay(self._recall) if self._chain.links[0].fresh else []
        if not self._begun:
            self._skip_cached()
        self._chain.settle(refills=self._steps.replay_to() > 0)
        self.state = State.STREAMING
        self._deadline = now + self.terms.step_timeout_s if len(self._steps) else None
        messages = [self._chain.hidden(step, replay=True) for step in replays]
        messages += [self._chain.hidden(step) for step in self._steps.in_flight()]
        return [self._send(0, message) for message in messages]

    def _skip_cached(self) -> None:
        self._begun, cached = True, self._chain.skip()
        if cached and self.terms.prefix is not None:
            self._steps.skip(cached, len(self.terms.prefix.prompt.token_ids))
            self.stats.cached_tokens = cached

    def _lose(self, lost: Link, error: HopError) -> list[Action]:
        """A hop is gone: plan its span anew, with hops that its repair, or the one before, cannot do without."""
        if self.state is State.CLOSED:
            return []
        self.last_error = error
        self.avoided.failed(lost.peer_id)
        spans = self._chain.given_up(lost, refilling=self._steps.refills())
        if self.state is State.PLANNING:
            spans.append(self._lost)
        # A hop that refused or was silent may hold its lease still; one whose link is gone is not to be called again.
        dead = lost.peer_id if isinstance(error, HopClosed) else ""
        start = self._chain.refillable(min(start for start, _ in spans))
        return [Blame(error), *self._replan(start, max(stop for _, stop in spans), dead)]

    def _replan(self, start: int, stop: int, dead: str = "") -> list[Action]:
        """Give up the hops within `[start, stop)` and ask for others."""
        closes = [Send(peer_id, self._chain.close()) for peer_id in self._chain.remove(start, stop) if peer_id != dead]
        self._lost = (start, stop)
        self._chain.epoch += 1
        self.stats.repairs += 1
        self.state, self._deadline = State.PLANNING, None
        return [*closes, self._plan()]

    def _plan(self) -> Plan:
        (start, stop), hops = self._lost, self.route()
        upstream = next((hop.peer_id for hop in hops if hop.stop == start), None)
        downstream = next((hop.peer_id for hop in hops if hop.start == stop), None)
        keep = frozenset(hop.peer_id for hop in hops)
        return Plan(start, stop, frozenset(self.avoided.peers) | keep, upstream, downstream)

    def forgive(self) -> Plan:
        """The plan under way, with the peers that failed before allowed again."""
        self.avoided.forgive()
        return self._plan()

    def whole_plan(self) -> Plan | None:
        """A plan for all blocks, if survivors are kept that it could use otherwise."""
        terms = self.terms
        return Plan(terms.start, terms.stop, frozenset(self.avoided.peers), None, None) if self._chain.links else None

    def start_over(self) -> list[Action]:
        """Give up the survivors too: every hop is planned anew, and refilled from the client's own inputs."""
        self._starts_over += 1
        if self._starts_over > MAX_STARTS_OVER:
            return [*self.close(), GiveUp(f"{MAX_STARTS_OVER} new beginnings in a row brought no answer")]
        return self._replan(self.terms.start, self.terms.stop)

    def _on_refused(self, index: int, message: Refused, now: float) -> list[Action]:
        link = self._chain.links[index]
        if message.reason is Reason.NEXT_HOP_LOST and self.state is not State.PLANNING and self._chain.direct(index):
            return self._bridge(index, now)
        if message.reason in _START_OVER and not self.avoided.doubted(link.peer_id):
            return self.start_over()
        return self._lose(link, HopRefused(link.peer_id, message.reason, f"{link.peer_id} refused: {message.text}"))

    def _bridge(self, index: int, now: float) -> list[Action]:
        """A hop does not reach the next one, but we may: carry what goes between them. If that one is dead, our own
        link to it says so."""
        source, target = (link.peer_id for link in self._chain.links[index : index + 2])
        hops = self._chain.bridge(index)
        self._lost = (hops[0].start, hops[-1].stop) if hops else (self._chain.links[index].hop.stop,) * 2
        self.stats.bridges += 1
        return [Apart(source, target), *self._open(hops, now)]

    def _on_hidden(self, index: int, message: Hidden, now: float) -> list[Action]:
        if (target := self._chain.carried(index)) is not None:
            relays = message.replay or self.state is State.STREAMING  # else it comes again
            return [Send(target, message)] if relays else []
        # While a repair is under way answers wait: new hops were told the first open step, and it comes again anyway.
        step = self._steps.get(message.step)
        if not self._chain.is_last(index) or step is None or self.state is not State.STREAMING:
            return []
        if (message.rows, message.width, message.dtype) == (step.rows, self.terms.width, self.terms.dtype):
            return self._answered(message.step, message.rows, message.payload, now)
        link = self._chain.links[index]
        text = f"{link.peer_id} answered in another shape than it was asked for"
        return self._lose(link, HopRefused(link.peer_id, Reason.BAD_OUTPUT, text))

    def _on_receipt(self, index: int, message: Receipt, now: float) -> list[Action]:
        link = self._chain.links[index]
        news = link.seen < message.step < self._steps.next  # a receipt puts the deadline off once a hop and step
        link.seen = message.step if news else link.seen
        self._watch.heard(index, message.step, message.queue_s + message.compute_s, now)
        if message.compute_s:  # a repeated answer took no time and says nothing
            self.stats.receipt(link.hop, message, self._steps.count_of(message.step))
        if self.state is not State.STREAMING:
            return []
        if self._deadline is not None and news:
            self._deadline = now + self.terms.step_timeout_s
        step = self._steps.get(message.step)
        if self._chain.is_last(index) and step is not None and step.want is Want.NONE:
            return self._answered(message.step, 0, b"", now)
        return []

    def _answered(self, number: int, rows: int, payload: Buffer, now: float) -> list[Action]:
        if not self._steps.answered(number):
            return []
        self._watch.answered(number, now)
        self._starts_over = 0
        self._chain.filled()
        self.avoided.answered()
        self._deadline = now + self.terms.step_timeout_s if len(self._steps) else None
        return [Deliver(number, rows, payload)]

    def _send(self, index: int, message: Message) -> Send:
        return Send(self._chain.links[index].peer_id, message)
