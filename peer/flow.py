"""What a link's other side can take: how fast bytes reach it, and how many may be under way. Pure: no I/O, no clock.

Between us and the other side's program lie buffers of two daemons and two kernels, which swallow megabytes at once and
hide the line's rate. So marks go out between the bytes; the answer to one says when, by the other side's clock, all
before it had arrived. Two answers give a rate as BBR does (draft-cardwell-iccrg-bbr-congestion-control): bytes over the
longer of the times that sending and arriving took, so that neither a buffer nor a lying clock makes a line quicker than
it is. What is under way is kept to rate times round trip and a little more: what comes later, a token perhaps, then
waits behind that little only, and the rest waits here, where it can be overtaken.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

ALONE_S: Final = 0.025  # of the line's time may lie in buffers, while one session sends
SHARED_S: Final = 0.004  # while several do
PART_S: Final = 0.002  # of the line's time is a part of a large message
PARTS: Final = (8 * 1024, 256 * 1024)  # bytes of a part, least and most
NEW_PART: Final = 32 * 1024
LEAST_WINDOW: Final = 32 * 1024
NEW_WINDOW: Final = 256 * 1024
MOST_WINDOW: Final = 64 * 1024 * 1024
QUIET_MARK: Final = 64 * 1024  # bytes between marks while nothing waits
SPAN_S: Final = 0.03  # a rate is measured over so long a time,
SPAN_BYTES: Final = 512 * 1024  # or so many bytes in
SHORT_SPAN_S: Final = 0.012  # so long a time
SAMPLES: Final = 64
MEMORY_S: Final = 5.0  # of a rate, if there are newer ones


@dataclass(frozen=True, slots=True)
class _Mark:
    """Sent behind byte `sent` at `sent_at`; `first`: nothing else was under way; `full`: the window held more back;
    `pause`: the last byte before `sent` behind which nothing was waiting."""

    number: int
    sent: int
    sent_at: float
    first: bool
    full: bool
    pause: int


@dataclass(frozen=True, slots=True)
class _Point:
    """All bytes up to `sent`, the last of them written at `sent_at`, had arrived at `at` on the other clock."""

    sent: int
    sent_at: float
    at: float


class Flow:
    """One direction of a link. `rate`: bytes/s that were seen to arrive, 0 while unknown; `proven`: the same, from two
    samples on; `window`: bytes that may be under way; `round_trip_s`: the shortest of late."""

    def __init__(self) -> None:
        self.rate = self.proven = 0.0
        self.window = NEW_WINDOW
        self.round_trip_s = 0.0
        self.shared = False  # by several sessions
        self._sent = self._arrived = self._marked = 0
        self._marks: deque[_Mark] = deque()
        self._number = 0
        self._base: _Point | None = None
        self._pause = self._pause_before = 0  # the last bytes behind which nothing was waiting
        self._full = False
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES)  # (when, bytes/s)

    @property
    def part_bytes(self) -> int:
        """Into which parts large messages are cut."""
        least, most = PARTS
        return min(max(int(self.rate * PART_S), least), most) if self.rate else NEW_PART

    @property
    def under_way(self) -> int:
        """Bytes of which is not known that they have arrived."""
        return self._sent - self._arrived

    def room(self) -> bool:
        """Whether anything large may be sent now."""
        return self.under_way < self.window

    def wrote(self, size: int, now: float, *, more: bool) -> int | None:
        """So many bytes were written, and `more` wait. Returns the number of the mark to send now, if one is due."""
        first = not self.under_way
        self._sent += size
        if not more:
            self._pause_before, self._pause = self._pause, self._sent
        self._full = more and not self.room()
        unmarked = self._sent - self._marked
        due = unmarked >= min(self.part_bytes if more else QUIET_MARK, self.window // 2)
        return self._mark(now, first=first) if due or (more and (first or not self._marks)) else None

    def stuck(self, now: float) -> int | None:
        """Something waits for room. Returns the number of the mark that must go out, if no answer is to come."""
        return None if self._marks or not self.under_way else self._mark(now, first=False)

    def answered(self, number: int, at: float, now: float) -> bool:
        """Everything before mark `number` had arrived `at` on the other side's clock; False if there is no such mark
        (an answer that came before is no news)."""
        while self._marks and self._marks[0].number < number:
            self._marks.popleft()
        if not self._marks or self._marks[0].number != number:
            return False
        mark = self._marks.popleft()
        gained, self._arrived = mark.sent - self._arrived, mark.sent
        self._measure(_Point(mark.sent, mark.sent_at, at), mark.pause)
        took_s = now - mark.sent_at
        self.round_trip_s = min(self.round_trip_s, took_s) if self.round_trip_s and not mark.first else took_s
        self._steer(took_s - self.round_trip_s, gained, full=mark.full)
        return True

    def pinged(self, round_trip_s: float) -> None:
        """A round trip was measured; on a quiet link it is the line's own."""
        if not self.under_way or not self.round_trip_s:
            self.round_trip_s = round_trip_s

    def _mark(self, now: float, *, first: bool) -> int:
        self._number += 1
        self._marked = self._sent
        pause = self._pause if self._pause < self._sent else self._pause_before
        self._marks.append(_Mark(self._number, self._sent, now, first, self._full, pause))
        return self._number

    def _measure(self, point: _Point, pause: int) -> None:
        base = self._base
        if base is None or point.at <= base.at or base.sent <= pause:
            # The line was idle meanwhile, or nothing is known to compare with.
            if base is None or point.at > base.at:
                self._base = point
            return
        size, took_s = point.sent - base.sent, max(point.at - base.at, point.sent_at - base.sent_at)
        if took_s >= SPAN_S or (size >= SPAN_BYTES and took_s >= SHORT_SPAN_S):
            self._samples.append((point.at, size / took_s))
            while len(self._samples) > 2 and point.at - self._samples[0][0] > MEMORY_S:
                self._samples.popleft()
            # The second best: one that a busy program has falsified shall not stand. A link's first is all that this
            # link can go by, and nothing to tell others.
            self.rate = sorted(rate for _, rate in self._samples)[-2:][0]
            self.proven = self.rate if len(self._samples) > 1 else 0.0
            self._base = point

    def _steer(self, waited_s: float, gained: int, *, full: bool) -> None:
        """The window grows while the line takes what it gets, and comes down to what it takes."""
        slack_s = SHARED_S if self.shared else ALONE_S
        fits = int(self.rate * (self.round_trip_s + slack_s))
        if waited_s < slack_s / 2:
            self.window += gained if full else 0
        elif self.rate and waited_s > slack_s:
            self.window = fits
        self.window = min(max(self.window, 2 * self.part_bytes, LEAST_WINDOW), MOST_WINDOW)
