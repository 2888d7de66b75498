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
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from shoal.client.actions import Action, Blame, Deliver, GiveUp, HopTimes, Plan, Send, SessionStats, SessionTerms
from shoal.peer.errors import HopClosed, HopRefused, HopTimedOut, Reason
from shoal.peer.wire import Close, Hidden, Open, Opened, Receipt, Refused, Reroute, Want

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal.peer.errors import HopError
    from shoal.peer.wire import Buffer, Message
    from shoal.routing.route import Hop, Route

REPLAY_TOKENS = 512
MAX_IN_FLIGHT = 32
MAX_FRUITLESS_REPAIRS = 16
# Reasons that speak of the lease's history, not of the peer: the whole route is opened anew.
_START_OVER = frozenset({Reason.NO_REPLAY, Reason.GAP})


class State(Enum):
    """Where a session stands."""

    PLANNING = auto()
    OPENING = auto()
    REPAIRING = auto()
    STREAMING = auto()
    CLOSED = auto()


@dataclass(slots=True)
class _Hop:
    """One hop of the route. `fresh`: opened by the repair under way; `ready`: it confirmed the current epoch;
    `seen`: the newest step that it sent a receipt for."""

    hop: Hop
    fresh: bool = True
    ready: bool = False
    seen: int = -1


@dataclass(frozen=True, slots=True)
class _Step:
    """A step in flight: its input is kept until it is answered."""

    number: int
    position: int
    count: int
    want: Want
    payload: Buffer
    length: int = 0


class Session:
    """The state machine. `recall(a, b)` gives the inputs of positions `[a, b)` again, as bytes."""

    def __init__(self, terms: SessionTerms, recall: Callable[[int, int], Buffer]) -> None:
        self.terms = terms
        self.state = State.PLANNING
        self.position = 0
        self.stats = SessionStats()
        self.last_error: HopError | None = None
        self._recall = recall
        self._hops: list[_Hop] = []
        self._lost = (terms.start, terms.stop)
        self._epoch = 0
        self._next_step = 0
        self._in_flight: dict[int, _Step] = {}
        self._failed: set[str] = set()
        self._fruitless = 0  # repairs since the last answer
        self._deadline: float | None = None

    # -- what the caller wants ------------------------------------------------------------------------------------

    def begin(self) -> list[Action]:
        """Ask for a first route."""
        return [self._plan()]

    def step(self, count: int, want: Want, payload: Buffer, now: float, length: int = 0) -> tuple[int, list[Action]]:
        """Number and send one step of `count` tokens at `position`, part of a prompt that ends at `length` (0: here).

        Errors: `ValueError` past the agreed tokens.
        """
        if self.position + count > self.terms.max_tokens:
            raise ValueError(f"the session was opened for {self.terms.max_tokens} tokens")
        step = _Step(self._next_step, self.position, count, want, payload, length)
        self._next_step += 1
        self.position += count
        self.stats.steps += 1
        self._in_flight[step.number] = step
        if self.state is not State.STREAMING:
            return step.number, []
        self._deadline = self._deadline or now + self.terms.step_timeout_s
        return step.number, [self._send_step(step)]

    def rewind(self, position: int) -> None:
        """Set the position back; the next step overwrites what lay behind it. Errors: `ValueError`."""
        if not 0 <= position <= self.position or self._in_flight:
            raise ValueError(f"cannot set the position to {position}: it is {self.position}, or steps are in flight")
        self.position = position

    def full(self) -> bool:
        """As many steps are in flight as hops remember."""
        return len(self._in_flight) >= MAX_IN_FLIGHT

    def close(self) -> list[Action]:
        """End the session and free every lease."""
        self.state, self._deadline = State.CLOSED, None
        return [self._close(hop.hop.peer_id) for hop in self._hops]

    def route(self) -> tuple[Hop, ...]:
        """The hops in use now."""
        return tuple(hop.hop for hop in self._hops)

    def uses(self, peer_id: str) -> bool:
        """Whether a hop of the route is served by this peer."""
        return any(hop.hop.peer_id == peer_id for hop in self._hops)

    # -- what happens ---------------------------------------------------------------------------------------------

    def on_route(self, route: Route, now: float) -> list[Action]:
        """Hops for the lost span were found: open them."""
        if self.state is not State.PLANNING:
            return []
        start, stop = self._lost
        before = [hop for hop in self._hops if hop.hop.stop <= start]
        after = [hop for hop in self._hops if hop.hop.start >= stop]
        self._hops = [*before, *(_Hop(hop) for hop in route.hops), *after]
        for hop in [*before, *after]:
            hop.fresh, hop.ready = False, False
        self.state = State.REPAIRING if before or after else State.OPENING
        self._deadline = now + self.terms.open_timeout_s
        return [Send(hop.hop.peer_id, self._open(index)) for index, hop in enumerate(self._hops) if hop.fresh]

    def on_message(self, peer_id: str, message: Message, now: float) -> list[Action]:
        """A hop spoke."""
        index = next((i for i, hop in enumerate(self._hops) if hop.hop.peer_id == peer_id), None)
        if index is None or self.state is State.CLOSED or getattr(message, "epoch", -1) != self._epoch:
            return []
        if isinstance(message, Opened):
            return self._on_opened(index, now)
        if isinstance(message, Refused):
            return self._on_refused(index, message)
        if isinstance(message, Hidden):
            return self._on_hidden(index, message, now)
        if isinstance(message, Receipt):
            return self._on_receipt(index, message, now)
        return []

    def on_closed(self, peer_id: str, why: str) -> list[Action]:
        """The link to a peer ended or could not be opened."""
        return self._lose([hop for hop in self._hops if hop.hop.peer_id == peer_id], HopClosed(peer_id, why))

    def deadline(self) -> float | None:
        """When `on_timer` wants to be called."""
        return self._deadline

    def on_timer(self, now: float) -> list[Action]:
        """Hops that were silent past the deadline are lost."""
        if self._deadline is None or now < self._deadline or self.state in (State.CLOSED, State.PLANNING):
            return []
        late = self._late()
        peer_id = late.hop.peer_id
        return self._lose([late], HopTimedOut(peer_id, f"{peer_id} did not answer in time"))

    def _late(self) -> _Hop:
        """Who is waited for: a hop that was asked and has not confirmed the epoch, or else the first that has not run
        the oldest step in flight. The last hop, if all say that they did: its answer is missing."""
        waiting = [hop for hop in self._hops if hop.fresh and not hop.ready] or [h for h in self._hops if not h.ready]
        silent = (hop for hop in self._hops if hop.seen < self._first_in_flight())
        return waiting[0] if waiting else next(silent, self._hops[-1])

    # -- opening and repair ---------------------------------------------------------------------------------------

    def _on_opened(self, index: int, now: float) -> list[Action]:
        if self.state not in (State.OPENING, State.REPAIRING):
            return []
        self._hops[index].ready = True
        if any(hop.fresh and not hop.ready for hop in self._hops):
            return []
        waiting = [i for i, hop in enumerate(self._hops) if not hop.ready]
        if not waiting:
            return self._stream(now)
        if self._hops[index].fresh:  # the last new hop is ready: now the survivors may be told
            return [Send(self._hops[i].hop.peer_id, self._reroute(i)) for i in waiting]
        return []

    def _stream(self, now: float) -> list[Action]:
        """Every hop is ready: refill a new first hop from the client's inputs, then send what is in flight again."""
        replays = self._client_replay() if self._hops[0].fresh else []
        for hop in self._hops:
            hop.fresh = False
        self.state = State.STREAMING
        self._deadline = now + self.terms.step_timeout_s if self._in_flight else None
        return [*replays, *(self._send_step(step) for step in self._in_flight.values())]

    def _client_replay(self) -> list[Action]:
        sends: list[Action] = []
        stop = self._replay_to()
        for position in range(0, stop, REPLAY_TOKENS):
            count = min(REPLAY_TOKENS, stop - position)
            step = _Step(0, position, count, Want.NONE, self._recall(position, position + count))
            sends.append(self._send_step(step, replay=True))
        return sends

    def _replay_to(self) -> int:
        """First position that is not answered for: everything before it must be in every KV."""
        return next((step.position for step in self._in_flight.values()), self.position)

    def _lose(self, hops: Sequence[_Hop], error: HopError) -> list[Action]:
        """Some hops are gone: plan their span anew. Hops of an unfinished repair are given up with them."""
        if not hops or self.state is State.CLOSED:
            return []
        self.last_error = error
        self._failed.update(hop.hop.peer_id for hop in hops)
        gone = [hop for hop in self._hops if hop in hops or hop.fresh]
        spans = [(hop.hop.start, hop.hop.stop) for hop in gone] + ([self._lost] if self.state is State.PLANNING else [])
        # A hop that refused or was silent may hold its lease still; one whose link is gone is not to be called again.
        dead = frozenset(hop.hop.peer_id for hop in hops if isinstance(error, HopClosed))
        return [Blame(error), *self._replan(min(s for s, _ in spans), max(s for _, s in spans), dead)]

    def _replan(self, start: int, stop: int, dead: frozenset[str] = frozenset()) -> list[Action]:
        """Give up the hops within `[start, stop)` and ask for others."""
        inside = [hop.hop.peer_id for hop in self._hops if start <= hop.hop.start < stop]
        self._hops = [hop for hop in self._hops if hop.hop.peer_id not in inside]
        self._lost = (start, stop)
        closes = [self._close(peer_id) for peer_id in inside if peer_id not in dead]
        self._epoch += 1
        self.stats.repairs += 1
        self.state, self._deadline = State.PLANNING, None
        self._fruitless += not isinstance(self.last_error, HopRefused) or self.last_error.reason is not Reason.BUSY
        if self._fruitless > MAX_FRUITLESS_REPAIRS:
            return [*closes, *self.close(), GiveUp(f"{MAX_FRUITLESS_REPAIRS} repairs in a row brought no answer")]
        return [*closes, self._plan()]

    def _plan(self) -> Plan:
        start, stop = self._lost
        upstream = next((hop.hop.peer_id for hop in self._hops if hop.hop.stop == start), None)
        downstream = next((hop.hop.peer_id for hop in self._hops if hop.hop.start == stop), None)
        keep = frozenset(hop.hop.peer_id for hop in self._hops)
        return Plan(start, stop, frozenset(self._failed) | keep, upstream, downstream)

    def forgive(self) -> Plan:
        """The plan under way, with the peers that failed before allowed again."""
        self._failed.clear()
        return self._plan()

    def whole_plan(self) -> Plan | None:
        """A plan for all blocks, if survivors are kept that it could use otherwise."""
        terms = self.terms
        return Plan(terms.start, terms.stop, frozenset(self._failed), None, None) if self._hops else None

    def start_over(self) -> list[Action]:
        """Give up the survivors too: every hop is planned anew, and refilled from the client's own inputs."""
        return self._replan(self.terms.start, self.terms.stop)

    def _on_refused(self, index: int, message: Refused) -> list[Action]:
        hop = self._hops[index]
        if message.reason is Reason.NEXT_HOP_LOST and index + 1 < len(self._hops):
            hop = self._hops[index + 1]  # the messenger is well; the hop behind it is not
        if message.reason in _START_OVER:
            return self.start_over()
        peer_id = hop.hop.peer_id
        return self._lose([hop], HopRefused(peer_id, message.reason, f"{peer_id} refused: {message.text}"))

    # -- steps ----------------------------------------------------------------------------------------------------

    def _on_hidden(self, index: int, message: Hidden, now: float) -> list[Action]:
        # While a repair is under way answers wait: new hops were told the first open step, and it comes again anyway.
        step = self._in_flight.get(message.step)
        if index != len(self._hops) - 1 or step is None or self.state is not State.STREAMING:
            return []
        rows = {Want.NONE: 0, Want.LAST: 1, Want.ALL: step.count}[step.want]
        if (message.rows, message.width, message.dtype) == (rows, self.terms.width, self.terms.dtype):
            return self._answered(message.step, message.rows, message.payload, now)
        hop = self._hops[index]
        text = f"{hop.hop.peer_id} answered in another shape than it was asked for"
        return self._lose([hop], HopRefused(hop.hop.peer_id, Reason.BAD_OUTPUT, text))

    def _on_receipt(self, index: int, message: Receipt, now: float) -> list[Action]:
        self._hops[index].seen = max(self._hops[index].seen, message.step)
        self.stats.hops.setdefault(self._hops[index].hop.peer_id, HopTimes()).add(message.queue_s, message.compute_s)
        if self.state is not State.STREAMING:
            return []
        if self._deadline is not None:
            self._deadline = now + self.terms.step_timeout_s
        step = self._in_flight.get(message.step)
        if index == len(self._hops) - 1 and step is not None and step.want is Want.NONE:
            return self._answered(message.step, 0, b"", now)
        return []

    def _answered(self, number: int, rows: int, payload: Buffer, now: float) -> list[Action]:
        if self._in_flight.pop(number, None) is None:
            return []
        self._fruitless = 0
        self._deadline = now + self.terms.step_timeout_s if self._in_flight else None
        return [Deliver(number, rows, payload)]

    # -- messages -------------------------------------------------------------------------------------------------

    def _send_step(self, step: _Step, *, replay: bool = False) -> Send:
        message = Hidden(
            session=self.terms.session, epoch=self._epoch, step=step.number, position=step.position, count=step.count,
            want=step.want, replay=replay, rows=step.count, width=self.terms.width, dtype=self.terms.dtype,
            length=step.length, payload=step.payload,
        )  # fmt: skip
        return Send(self._hops[0].hop.peer_id, message)

    def _neighbours(self, index: int) -> tuple[str, str, tuple[str, ...]]:
        prev = self._hops[index - 1].hop.peer_id if index else ""
        after = self._hops[index + 1].hop.peer_id if index + 1 < len(self._hops) else ""
        return prev, after, self.terms.addrs(after)[:8] if after else ()

    def _open(self, index: int) -> Open:
        prev, after, addrs = self._neighbours(index)
        hop, last = self._hops[index].hop, index == len(self._hops) - 1
        terms = self.terms
        return Open(
            session=terms.session, epoch=self._epoch, namespace=terms.namespace, revision=terms.revision,
            start=hop.start, stop=hop.stop, max_tokens=terms.max_tokens, next_step=self._first_in_flight(),
            dtype=terms.dtype, prev=prev, next=after, next_addrs=addrs, final=last,
            forward_replay=not last and self._hops[index + 1].fresh, proof=terms.prove(hop.peer_id),
        )  # fmt: skip

    def _close(self, peer_id: str) -> Send:
        return Send(peer_id, Close(session=self.terms.session, epoch=self._epoch))

    def _first_in_flight(self) -> int:
        return next(iter(self._in_flight), self._next_step)

    def _reroute(self, index: int) -> Reroute:
        prev, after, addrs = self._neighbours(index)
        refill = index + 1 < len(self._hops) and self._hops[index + 1].fresh
        return Reroute(
            session=self.terms.session, epoch=self._epoch, prev=prev, next=after, next_addrs=addrs,
            replay_to=self._replay_to() if refill else 0,
        )  # fmt: skip
