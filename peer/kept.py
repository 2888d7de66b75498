"""A lease's own outputs, kept for duplicates and for refilling a new hop. Bytes only: no tensors, no clock.

Outputs lie in order of position without gaps. They begin at 0, or behind what was in the KV when the lease was opened.
When the budget is passed the oldest go. Where the beginning is missing, a replay from position 0 is refused while the
newest steps can still be answered again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from shoal.peer.wire import Want

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.peer.wire import Buffer

ALWAYS_KEPT = 64  # newest outputs that no budget takes: a client has at most this many steps in flight
LARGE_KEPT = 4  # so many, where the oldest is a prompt's: those are large, and a client can have them run again


@dataclass(slots=True)
class Kept:
    """One output: `rows` states for positions `[position, position + count)`; step -1 for replayed states. `told`: the
    epoch under which it was sent on last, -1 for never."""

    step: int
    position: int
    count: int
    want: Want
    rows: int
    payload: Buffer
    length: int = 0
    told: int = field(default=-1, compare=False)


@dataclass(slots=True)
class KeptBudget:
    """What all leases of a peer may keep together."""

    limit_bytes: int
    used_bytes: int = 0


class KeptOutputs:
    """Outputs of one lease, within `budget_bytes` and what the peer's `shared` budget leaves."""

    def __init__(self, budget_bytes: int, shared: KeptBudget | None = None) -> None:
        self.budget_bytes = budget_bytes
        self.shared = shared or KeptBudget(budget_bytes)
        self.bytes = 0
        self._outputs: deque[Kept] = deque()

    @property
    def whole(self) -> bool:
        """Whether nothing is missing before the oldest output."""
        return not self._outputs or not self._outputs[0].position

    def add(self, output: Kept) -> None:
        """Keep one more output; what it rewinds over is forgotten."""
        self.truncate(output.position)
        self._append(output)
        while self._is_over() and len(self._outputs) > (LARGE_KEPT if self._outputs[0].rows > 1 else ALWAYS_KEPT):
            self._count(-_size(self._outputs.popleft()))

    def clear(self) -> None:
        """Forget everything: the lease has ended."""
        self._outputs.clear()
        self._count(-self.bytes)

    def truncate(self, position: int) -> None:
        """Forget everything from `position` on."""
        while self._outputs and self._outputs[-1].position + self._outputs[-1].count > position:
            last = self._outputs.pop()
            self._count(-_size(last))
            if last.position < position and last.rows == last.count:
                self._append(_cut(last, position - last.position))

    def answer(self, step: int) -> Kept | None:
        """What step `step` gave, or None if it is gone."""
        return next((output for output in reversed(self._outputs) if output.step == step), None)

    def replay(self, stop: int, max_rows: int) -> list[Kept] | None:
        """Outputs that tile `[0, stop)`, neighbours of one length joined up to `max_rows` each; None if not kept."""
        if not stop:
            return []  # nothing to refill, whatever is missing
        groups: list[list[Kept]] = []
        rows = 0
        for output in self._until(stop):
            joins = groups and groups[-1][0].length == output.length and rows + output.count <= max_rows
            if joins:
                groups[-1].append(output)
            else:
                groups.append([output])
                rows = 0
            rows += output.count
        reached = groups[-1][-1].position + groups[-1][-1].count if groups else 0
        return [_join(group) for group in groups] if self.whole and reached == stop else None

    def _until(self, stop: int) -> Iterator[Kept]:
        for output in self._outputs:
            if output.position >= stop or output.rows != output.count:
                return
            yield _cut(output, stop - output.position) if output.position + output.count > stop else output

    def _append(self, output: Kept) -> None:
        self._outputs.append(output)
        self._count(_size(output))

    def _count(self, change_bytes: int) -> None:
        self.bytes += change_bytes
        self.shared.used_bytes += change_bytes

    def _is_over(self) -> bool:
        return self.bytes > self.budget_bytes or self.shared.used_bytes > self.shared.limit_bytes


def _join(outputs: list[Kept]) -> Kept:
    """Neighbouring outputs as one, which answers no step."""
    count = sum(output.count for output in outputs)
    payload = b"".join(output.payload for output in outputs)
    return replace(outputs[0], step=-1, want=Want.NONE, count=count, rows=count, payload=payload)


def _size(output: Kept) -> int:
    return memoryview(output.payload).nbytes


def _cut(output: Kept, count: int) -> Kept:
    """The first `count` rows of an output; it answers no step any more."""
    row_bytes = _size(output) // output.rows
    payload = bytes(memoryview(output.payload).cast("B")[: count * row_bytes])
    return replace(output, step=-1, count=count, rows=count, payload=payload)
