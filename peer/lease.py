"""One session's claim on one peer: which step may run, what goes where. Sans-IO: no sockets, no tensors, no clock.

A step is accepted once. A duplicate gets the same answer and runs nothing; a gap is refused; a step whose position lies
before the KV's end rewinds. Replayed states refill the KV and are passed on only where the next hop is new as well.

    message            step < next        step == next             step > next
    Hidden, this epoch answer again       run, forward             refuse: gap
    Hidden, replay     -- run if it begins at the KV's end, ignore if it is there already, else refuse: gap --
    Hidden, old epoch  ignore             ignore                   ignore

A lease may be opened ahead, while its session goes on over another hop: its first step may then have a later number
than it was told, and its position alone says whether anything is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from shoal.peer.errors import Reason
from shoal.peer.giving import side_of
from shoal.peer.kept import ALWAYS_KEPT, Kept, KeptOutputs
from shoal.peer.repeats import Repeats
from shoal.peer.wire import Hidden, Message, Opened, Receipt, Refused, Want

if TYPE_CHECKING:
    from shoal.peer.holding import Holding
    from shoal.peer.kept import KeptBudget
    from shoal.peer.wire import Buffer, Open, Reroute

REPLAY_ROWS = 512


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a peer (or to the lease's owner)."""

    to: str
    message: Message


@dataclass(frozen=True, slots=True)
class Run:
    """Put these hidden states through the span. `keep_rows`: how many of the last output rows are needed."""

    hidden: Hidden
    keep_rows: int


Action: TypeAlias = Send | Run


@dataclass(frozen=True, slots=True)
class Terms:
    """What was agreed when the lease was opened; `width` is the model's hidden size, `holding` its share of the KV,
    `link` the owner's link that it was opened over, `network` whence that came (None: it does not count)."""

    owner: str
    holding: Holding
    width: int
    kept_bytes: int
    kept_shared: KeptBudget | None = None
    link: int = 0
    network: str | None = None


ROWS_EACH = 4  # times its tokens may wait for a lease: its prompt, begun anew, behind a refill, while the old one runs


class Lease:
    """State of one lease. Methods take messages and return actions; nothing else is touched."""

    def __init__(self, request: Open, terms: Terms) -> None:
        self.session = request.session
        self.start, self.stop = request.start, request.stop
        self.max_tokens, self.dtype, self.final = request.max_tokens, request.dtype, request.final
        self.priority = request.priority
        self.terms = terms
        self.epoch = request.epoch
        self.prev = request.prev or terms.owner
        self.next, self.next_addrs = request.next or terms.owner, request.next_addrs
        self.forward_replay = request.forward_replay
        self.next_step = request.next_step
        self.holding = terms.holding
        self.position = terms.holding.end  # of the prompt's beginning, where it was in the KV already
        self.kept = KeptOutputs(terms.kept_bytes, terms.kept_shared)
        self._running: dict[int, int] = {}  # step -> the epoch under which its output was asked for last
        self._begun = False  # a step of its own was run
        self._rows = 0  # that wait or run
        self._repeats = Repeats()
        self.side = side_of(terms.owner, terms.network)  # whose share of this peer it is
        self.heard = 0.0  # when a message for it came last, in seconds of the peer's clock
        self.gave_way = False  # to another client's: it has ended, and its owner is told when it goes on

    @property
    def owner(self) -> str:
        """Peer id of the client."""
        return self.terms.owner

    def quiet_s(self, now: float) -> float:
        """Seconds for which nothing was done for it, and nothing came."""
        return 0.0 if self.holding.jobs else now - max(self.heard, self.holding.idle_since)

    def accept(self, hidden: Hidden, sender: str) -> list[Action]:
        """Decide about hidden states that `sender` pushed."""
        if sender not in (self.prev, self.owner):
            return []
        if hidden.epoch != self.epoch:
            return []
        if self.gave_way:
            return self.refuse(Reason.UNKNOWN_LEASE, "it was idle, and its room went to another client")
        if (wrong := self._misfit(hidden)) is not None:
            return self.refuse(Reason.LIMIT, wrong)
        if self._rows + hidden.count > ROWS_EACH * self.max_tokens:
            return self.refuse(Reason.LIMIT, f"{self._rows} tokens wait already, which is all that a lease may have")
        return self._replay(hidden) if hidden.replay else self._step(hidden)

    def finish(self, hidden: Hidden, payload: Buffer, rows: int, times_s: tuple[float, float]) -> list[Action]:
        """Turn the span's output for `hidden` into messages. `times_s`: (queued, computed)."""
        self._rows -= hidden.count
        step = -1 if hidden.replay else hidden.step
        kept = Kept(step, hidden.position, hidden.count, hidden.want, rows, payload, hidden.length)
        self.kept.add(kept)
        if hidden.replay:
            return [self._forward(kept, replay=True)] if self.forward_replay else []
        asked = self._running.pop(hidden.step, self.epoch)
        # After a repair the owner asks for it again, after those before it, which the next hop may lack.
        if asked != self.epoch:
            return [self._receipt(hidden.step, times_s)]
        kept.told = self.epoch
        return [*self._answer(kept), self._receipt(hidden.step, times_s)]

    def reroute(self, message: Reroute, now: float) -> list[Action]:
        """Take new neighbours, refill the new next hop if asked, and confirm. `now`: seconds of the peer's clock."""
        if message.epoch <= self.epoch:
            return []
        self.epoch = message.epoch
        self.prev, self.next = message.prev or self.owner, message.next or self.owner
        self.next_addrs, self.forward_replay = message.next_addrs, False
        self._repeats.elapse(now)
        if not self._repeats.take(message.replay_to):
            return self._refuse_repeat(f"outputs up to position {message.replay_to}")
        pieces = self.kept.replay(message.replay_to, REPLAY_ROWS)
        if pieces is None:
            return self.refuse(Reason.NO_REPLAY, f"outputs up to position {message.replay_to} are no longer kept")
        sends = [self._forward(piece, replay=True) for piece in pieces]
        return [*sends, Send(self.owner, Opened(session=self.session, epoch=self.epoch))]

    def refuse(self, reason: Reason, text: str) -> list[Action]:
        """Tell the owner that this lease cannot go on."""
        refused = Refused(session=self.session, epoch=self.epoch, reason=reason, text=text[:512], retry_s=0.0)
        return [Send(self.owner, refused)]

    def _refuse_repeat(self, what: str) -> list[Action]:
        """The owner can open a lease anew and refill it from its own inputs."""
        return self.refuse(Reason.NO_REPLAY, f"{what} would go out again too often for what came in")

    def _misfit(self, hidden: Hidden) -> str | None:
        if hidden.position + hidden.count > self.max_tokens:
            return f"position {hidden.position + hidden.count} passes the lease's {self.max_tokens} tokens"
        if hidden.rows != hidden.count or hidden.width != self.terms.width or hidden.dtype != self.dtype:
            return "hidden states have not the agreed shape or dtype"
        return None

    def _replay(self, hidden: Hidden) -> list[Action]:
        if hidden.position + hidden.count <= self.position:
            return []
        if hidden.position != self.position:
            return self.refuse(Reason.GAP, f"replay at position {hidden.position}, KV ends at {self.position}")
        self.position += hidden.count
        self._take(hidden.count)
        return [Run(hidden, 0 if self.final else hidden.count)]

    def _step(self, hidden: Hidden) -> list[Action]:
        if hidden.step < self.next_step:
            return self._again(hidden.step)
        if len(self._running) >= ALWAYS_KEPT:
            return self.refuse(Reason.LIMIT, f"{ALWAYS_KEPT} steps are in flight, which is all that a lease may have")
        if (self._begun and hidden.step > self.next_step) or hidden.position > self.position:
            text = f"step {hidden.step} at {hidden.position}; expected {self.next_step} at or before {self.position}"
            return self.refuse(Reason.GAP, text)
        self._take(hidden.count)
        self._begun, self.next_step = True, hidden.step + 1
        self.position = hidden.position + hidden.count
        self._running[hidden.step] = self.epoch
        return [Run(hidden, self._rows_back(hidden))]

    def _take(self, rows: int) -> None:
        self._rows += rows
        self._repeats.brought(rows)

    def _rows_back(self, hidden: Hidden) -> int:
        if not self.final or hidden.want is Want.ALL:
            return hidden.count
        return 1 if hidden.want is Want.LAST else 0

    def _again(self, step: int) -> list[Action]:
        """A duplicate: the same answer, or nothing yet if it is still running."""
        if step in self._running:
            self._running[step] = self.epoch
            return []
        kept = self.kept.answer(step)
        if kept is None:
            return self.refuse(Reason.NO_REPLAY, f"the output of step {step} is no longer kept")
        if kept.told == self.epoch:
            return []  # nobody needs it twice: after a loss there is another epoch
        if not self._repeats.take(kept.rows):
            return self._refuse_repeat(f"the output of step {step}")
        kept.told = self.epoch
        return [*self._answer(kept), self._receipt(step, (0.0, 0.0))]

    def _answer(self, kept: Kept) -> list[Action]:
        return [self._forward(kept, replay=False)] if kept.rows else []

    def _forward(self, kept: Kept, *, replay: bool) -> Send:
        message = Hidden(
            session=self.session, epoch=self.epoch, step=max(kept.step, 0), position=kept.position, count=kept.count,
            want=kept.want, replay=replay, rows=kept.rows, width=self.terms.width, dtype=self.dtype,
            length=kept.length, payload=kept.payload,
        )  # fmt: skip
        return Send(self.next, message)

    def _receipt(self, step: int, times_s: tuple[float, float]) -> Send:
        queue_s, compute_s = times_s
        return Send(
            self.owner,
            Receipt(session=self.session, epoch=self.epoch, step=step, queue_s=queue_s, compute_s=compute_s),
        )
