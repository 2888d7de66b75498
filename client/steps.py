"""A session's steps: their numbers and positions, which are in flight, what refills a new hop. Sans-IO: integers and
bytes, no messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.peer.wire import Want

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shoal.peer.wire import Buffer

MAX_IN_FLIGHT = 32
REPLAY_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Step:
    """A step in flight: its input is kept until it is answered. `length`: where its prompt ends (0: with it)."""

    number: int
    position: int
    count: int
    want: Want
    payload: Buffer
    length: int = 0

    @property
    def rows(self) -> int:
        """Rows of its answer."""
        return 1 if self.want is Want.LAST else self.count if self.want is Want.ALL else 0


class Steps:
    """`position`: tokens that are in every hop's KV once all that is in flight was run. `next`: the next number."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.position = 0
        self.next = 0
        self._in_flight: dict[int, Step] = {}  # without gaps: an answered one stays while an older one is open
        self._answered: set[int] = set()  # of those
        self._counts: dict[int, int] = {}  # tokens of the newest steps, answered ones too
        self._lengths = _Lengths()

    def __len__(self) -> int:
        """How many are in flight."""
        return len(self._in_flight)

    def add(self, count: int, want: Want, payload: Buffer, length: int) -> Step:
        """Number one step of `count` tokens at `position`. Errors: `ValueError` past the agreed tokens."""
        if self.position + count > self.max_tokens:
            raise ValueError(f"the session was opened for {self.max_tokens} tokens")
        step = self._in_flight[self.next] = Step(self.next, self.position, count, want, payload, length)
        self._counts[self.next] = count if length or count == 1 else 0  # several of no prompt: of no usual kind
        self._counts.pop(self.next - 2 * MAX_IN_FLIGHT, None)
        self._lengths.note(self.position, length)
        self.next += 1
        self.position += count
        return step

    def skip(self, count: int, length: int) -> None:
        """Every hop holds the first `count` tokens of a prompt of `length` already."""
        self._lengths.note(0, length)
        self.position = count

    def rewind(self, position: int) -> None:
        """Set the position back. Errors: `ValueError`."""
        if not 0 <= position <= self.position or self._in_flight:
            raise ValueError(f"cannot set the position to {position}: it is {self.position}, or steps are in flight")
        self.position = position

    def full(self) -> bool:
        """As many are in flight as hops remember."""
        return len(self._in_flight) >= MAX_IN_FLIGHT

    def get(self, number: int) -> Step | None:
        """A step that waits for its answer."""
        return None if number in self._answered else self._in_flight.get(number)

    def count_of(self, number: int) -> int:
        """Tokens of a step that is in flight or was lately; 0 if that is too long ago."""
        return self._counts.get(number, 0)

    def answered(self, number: int) -> bool:
        """A step is done; False if it was not waited for."""
        if self.get(number) is None:
            return False
        self._answered.add(number)
        while (oldest := next(iter(self._in_flight), -1)) in self._answered:
            self._answered.discard(oldest)
            del self._in_flight[oldest]
        return True

    def in_flight(self) -> Iterable[Step]:
        """Oldest first, without gaps: what new hops must be sent so that they can run the last one."""
        return self._in_flight.values()

    def first(self) -> int:
        """The oldest number in flight, or else the next one."""
        return next(iter(self._in_flight), self.next)

    def replay_to(self) -> int:
        """First position that is not answered for: everything before it must be in every KV."""
        return next((step.position for step in self._in_flight.values()), self.position)

    def refills(self) -> bool:
        """Whether steps wait behind what a new hop must be refilled with: who has run none may lack it."""
        return bool(self._in_flight) and self.replay_to() > 0

    def replay(self, recall: Callable[[int, int], Buffer]) -> list[Step]:
        """What fills an empty KV up to `replay_to`; `recall(a, b)` gives inputs again."""
        pieces = self._lengths.pieces(self.replay_to())
        return [Step(0, at, count, Want.NONE, recall(at, at + count), length) for at, count, length in pieces]


class _Lengths:
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
