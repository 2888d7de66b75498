"""How long each hop keeps a lone token, as the client sees it, and whether that has become too long. Sans-IO.

The client's own clock decides: from sending a step to the first hop's receipt, and from one hop's receipt to the next
one's. So a peer that is slow shows whatever the reason is, and whatever it says of itself.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.client.chain import Link

WINDOW = 8  # steps
SLOW = 3.0  # times what is expected
SLOW_S = 0.02  # and so much more than that: below, nobody notices
LEAST_S = 0.001  # a hop's share of a step: below, what is read in one go decides
HUSH = 4.0  # a hop is silent if nothing is heard for so many times what the whole route usually takes for a token
HUSH_S = 1.0  # and at least so long: it is about a second that users notice
PATIENCE = 64  # steps until a hop that was not left, or its successor, may be found slow again; doubles each time


class Pace:
    """The last steps of one hop. `expected_s`: what its route promised, or infinity."""

    def __init__(self, expected_s: float = float("inf")) -> None:
        self.expected_s = expected_s
        self.best_s = float("inf")
        self._last: deque[float] = deque(maxlen=WINDOW)

    def add(self, took_s: float) -> None:
        """One more step."""
        self._last.append(max(took_s, LEAST_S))
        if len(self._last) == WINDOW:
            self.best_s = min(self.best_s, self.mean_s)

    @property
    def usual_s(self) -> float:
        """What it takes when all is well: as promised, or the best that was seen."""
        return max(LEAST_S, min(self.expected_s, self.best_s))

    @property
    def mean_s(self) -> float:
        """Of the last steps but the longest, which proves nothing; 0 for fewer than half a window."""
        count = len(self._last)
        return (sum(self._last) - max(self._last)) / (count - 1) if count >= WINDOW // 2 else 0.0


class Tempo:
    """Follows one lone token at a time through the route."""

    def __init__(self) -> None:
        self._step, self._next, self._since = -1, 0, 0.0
        self._waiting, self._rows = -1, 1  # for the answer to this step, of so many tokens
        self._wait, self._patience = 0, PATIENCE

    def sent(self, step: int, now: float, *, alone: bool, rows: int = 1) -> None:
        """A step of one token, or of `rows`, most of them guesses, left; `alone` if it is the only one under way."""
        self._waiting, self._rows = step if alone else -1, rows
        self._step = self._waiting if rows == 1 else -1  # how much longer more take is not known
        self._next, self._since = 0, now

    def answered(self, step: int) -> None:
        """A step is done."""
        if step == self._waiting:
            self._waiting = -1

    def forget(self) -> None:
        """What is under way takes another route."""
        self._step = self._waiting = -1

    def due(self, links: Sequence[Link]) -> float | None:
        """When who should be heard of next has been silent for too long; None while nothing is known of their pace."""
        usual_s = sum(link.pace.usual_s for link in links)
        wait_s = max(HUSH_S, (HUSH + self._rows - 1) * usual_s)  # a guess takes as long as a token at most
        return self._since + wait_s if self._waiting >= 0 and wait_s < float("inf") else None

    def hushed(self) -> None:
        """It was said of this step; that is enough."""
        self._waiting = -1

    def receipt(self, links: Sequence[Link], index: int, step: int, now: float) -> None:
        """A hop has run a step: notes its pace and, at the last hop, who has become slow."""
        since = self._since
        if step in (self._step, self._waiting):
            self._since = now
        if step != self._step or index != self._next:
            self._step = -1  # repeated, or one receipt overtook another: no measure
            return
        links[index].pace.add(now - since)
        self._next = index + 1
        if self._next == len(links):
            self._judge(links)

    def _judge(self, links: Sequence[Link]) -> None:
        self._wait = max(0, self._wait - 1)
        if self._wait or any(link.slow_s for link in links):
            return
        found = max(links, key=lambda link: link.pace.mean_s - link.pace.usual_s)
        # Where all are slower than usual, it is the client, or the machine that they share.
        others = sorted(link.pace.mean_s / link.pace.usual_s for link in links if link is not found)
        usual_s = found.pace.usual_s * max(1.0, others[len(others) // 2] if others else 1.0)
        if found.pace.mean_s > max(SLOW * usual_s, usual_s + SLOW_S):
            # Promises count the legs on both sides of a hop, of which the slow one's share may hold only one.
            found.slow_s = 2 * found.pace.expected_s + (found.pace.mean_s - usual_s) / 2
            self._wait, self._patience = self._patience, 2 * self._patience
