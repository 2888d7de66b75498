"""What a session agrees on, asks its shell to do, and counts: data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.client.prefix import Prefix
    from shoal.peer.errors import HopError
    from shoal.peer.wire import Buffer, Message


@dataclass(frozen=True, slots=True)
class SessionTerms:
    """What a session asks of every hop; hidden states travel in the form `dtype` (`blocks.formats`).

    `prove(peer_id)` makes the proof of a private swarm's secret; `addrs(peer_id)` knows where a peer can be reached.
    `priority`: 1 waits behind 0. `prefix`: the prompt that the session will begin with, if it is known."""

    session: bytes
    namespace: bytes
    revision: str
    start: int
    stop: int
    max_tokens: int
    width: int
    dtype: str
    prove: Callable[[str], bytes]
    addrs: Callable[[str], tuple[str, ...]]
    open_timeout_s: float = 10.0
    step_timeout_s: float = 120.0
    priority: int = 0
    prefix: Prefix | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a peer, connecting if need be."""

    peer_id: str
    message: Message


@dataclass(frozen=True, slots=True)
class Plan:
    """Find hops for blocks `[start, stop)` between two neighbours (None: the client), without the peers in `avoid`."""

    start: int
    stop: int
    avoid: frozenset[str]
    upstream: str | None
    downstream: str | None


@dataclass(frozen=True, slots=True)
class Deliver:
    """A step is answered: `rows` hidden states (none for `Want.NONE`)."""

    step: int
    rows: int
    payload: Buffer


@dataclass(frozen=True, slots=True)
class Blame:
    """A hop failed; routing should know."""

    error: HopError


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The session cannot be mended; it is closed."""

    reason: str


Action: TypeAlias = Send | Plan | Deliver | Blame | GiveUp


@dataclass(slots=True)
class HopTimes:
    """Sums over a hop's receipts, in seconds."""

    steps: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0

    def add(self, queue_s: float, compute_s: float) -> None:
        """Count one receipt."""
        self.steps += 1
        self.queue_s += queue_s
        self.compute_s += compute_s


@dataclass(slots=True)
class SessionStats:
    """What a session went through; `hops` by peer id. `cached_tokens`: tokens of the prompt that every hop held from
    before, so that they were not run."""

    steps: int = 0
    repairs: int = 0
    cached_tokens: int = 0
    hops: dict[str, HopTimes] = field(default_factory=dict)
