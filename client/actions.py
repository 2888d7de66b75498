"""What a session agrees on, asks its shell to do, and counts: data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, TypeAlias

from shoal.blocks.formats import row_bytes
from shoal.client.times import HopTimes

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.client.prefix import Prefix
    from shoal.peer.errors import HopError
    from shoal.peer.wire import Buffer, Message, Receipt
    from shoal.routing.route import Hop

    Recall: TypeAlias = Callable[[int, int], Buffer]  # the inputs of positions [a, b), as they travel
    PutOff: TypeAlias = Callable[[Callable[[], None]], None]  # takes work that can wait until what was sent has left


def at_once(work: Callable[[], None]) -> None:
    """Where nothing is put off."""
    work()


class State(Enum):
    """Where a session stands."""

    PLANNING = auto()
    OPENING = auto()
    REPAIRING = auto()
    STREAMING = auto()
    CLOSED = auto()


@dataclass(frozen=True, slots=True)
class SessionTerms:
    """What a session asks of every hop; hidden states travel in the form `dtype` (`blocks.formats`).

    `prove(peer_id)` makes the proof of a private swarm's secret; `addrs(peer_id)` knows where a peer can be reached.
    `apart(a, b)`: whether peer a is known not to reach b. `priority`: 1 waits behind 0.
    `prefix`: the prompt that the session will begin with, if it is known."""

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
    apart: Callable[[str, str], bool] = lambda _source, _target: False

    @property
    def token_bytes(self) -> int:
        """What a token's hidden states take on the wire."""
        return row_bytes(self.dtype, self.width)


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a peer, connecting if need be."""

    peer_id: str
    message: Message


@dataclass(frozen=True, slots=True)
class Plan:
    """Find hops for blocks `[start, stop)` between two neighbours (None: the client), without the peers in `avoid`.

    `ahead`: hops that hold these blocks still serve, and go on if there are no others, or none within `worth_s` seconds
    a token. `here`: only over peers whose links stand; the others are called.
    """

    start: int
    stop: int
    avoid: frozenset[str]
    upstream: str | None
    downstream: str | None
    ahead: bool = False
    worth_s: float | None = None
    here: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """What new hops will have to do: `prompt_tokens` in chunks of `chunk_tokens` (of a running session, those that they
    are refilled with too), then `new_tokens` one by one; `max_tokens` of KV, `token_bytes` on the wire. `begins`: of a
    session that begins, what it begins with, if that is known. `ours`: peers that hold leases of the session, or did
    until lately: a new one takes their place."""

    prompt_tokens: int
    new_tokens: int
    max_tokens: int
    chunk_tokens: int
    token_bytes: int
    begins: Prefix | None = None
    ours: frozenset[str] = frozenset()


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
class Apart:
    """A hop cannot reach the one behind it; the client carries what goes between them."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The session cannot be mended; it is closed."""

    reason: str


Action: TypeAlias = Send | Plan | Deliver | Blame | Apart | GiveUp


@dataclass(slots=True)
class SessionStats:
    """What a session went through; `hops` by peer id. `repairs` after losses, `moves` away from hops that still served,
    `bridges` over boundaries where a hop was found not to reach the next one.
    `cached_tokens`: tokens of the prompt that every hop held from before, so that they were not run. `news`: of `hops`,
    what nobody has learned from yet."""

    steps: int = 0
    repairs: int = 0
    moves: int = 0
    bridges: int = 0
    cached_tokens: int = 0
    hops: dict[str, HopTimes] = field(default_factory=dict)
    news: dict[str, HopTimes] = field(default_factory=dict)

    def receipt(self, hop: Hop, message: Receipt, tokens: int) -> None:
        """Count a hop's receipt for a step of `tokens`."""
        for times in self.of(hop.peer_id):
            times.add(message.queue_s, message.compute_s, tokens, hop.stop - hop.start)

    def keeps(self, peer_id: str, before: str, seconds: float, n_bytes: int) -> None:
        """Count how much longer than it said a hop kept a lone token of so many bytes from `before`, "" being the
        client."""
        for times in self.of(peer_id):
            times.keeps(before, seconds, n_bytes)

    def of(self, peer_id: str) -> tuple[HopTimes, HopTimes]:
        """Where to count what a hop does: in all, and since the last `take_news`."""
        return self.hops.setdefault(peer_id, HopTimes()), self.news.setdefault(peer_id, HopTimes())

    def take_news(self) -> dict[str, HopTimes]:
        """What was counted since the last time."""
        news, self.news = self.news, {}
        return news
