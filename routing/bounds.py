"""Owns the sane range of every figure a peer may claim. Numbers only: knows no peer, no view, no clock.

A figure that cannot be a measurement (zero, negative, not a number, infinite) counts as the *worst* one of its range,
so that nobody gains by sending it; a figure outside the range counts as the nearest end.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Range(NamedTuple):
    """Closed range of a figure in seconds; `worst` is its upper end, because fewer seconds are better."""

    best: float
    worst: float

    def clamp(self, figure: float) -> float:
        """Return `figure` moved into the range; what cannot be a duration becomes `worst`."""
        if not math.isfinite(figure) or figure <= 0.0:
            return self.worst
        return min(max(figure, self.best), self.worst)


BLOCK_S = Range(1e-6, 60.0)  # one token through one block
LEG_S = Range(5e-6, 30.0)  # one message one way between two machines
RTT_S = Range(1e-5, 60.0)  # and back
WAIT_S = Range(1e-6, 60.0)  # one step waiting in a peer's queue

MIN_UPLOAD_BPS = 1e3  # bytes/s that a peer can send
MAX_UPLOAD_BPS = 1.25e10

MAX_QUEUE = 100_000  # sessions and tokens in service
MAX_FREE_TOKENS = 2**40
MAX_CHUNK = 65_536  # prompt tokens in one message
MAX_PENALTY = 100.0  # factor on the cost of a peer that keeps failing
CLAIM_GAIN = 4 / 3  # how much better than what is known otherwise an unmeasured claim may count


def clamp_upload(bytes_per_s: float) -> float:
    """Return a rate within its bounds; what cannot be one becomes 0, which stands for an unknown rate."""
    if not math.isfinite(bytes_per_s) or bytes_per_s <= 0.0:
        return 0.0
    return min(max(bytes_per_s, MIN_UPLOAD_BPS), MAX_UPLOAD_BPS)


def clamp_count(count: int, low: int, high: int) -> int:
    """Return `count` moved into [low, high]."""
    return min(max(count, low), high)
