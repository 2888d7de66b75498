"""Owns what a node has found out by itself: measured speeds, distances and failures. Knows no announcement, no clock.

A measured figure always wins over an announced one.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  (dataclass field type)
from dataclasses import dataclass, field
from statistics import median
from typing import Final

DEFAULT_LEG_S: Final = 0.025
CHUNK_MEASURED: Final = 128  # tokens of the chunk that `prefill_s` speaks of


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds per token and block: `decode_s` for one decode token alone, `prefill_s` within a prompt chunk of
    CHUNK_MEASURED. What is not a number is not known."""

    decode_s: float
    prefill_s: float


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Measurements of the node that plans. Every mapping is keyed by peer id.

    `rtts_s`: round trips from this node. `legs_s`: one-way times between two peers, (from, to); used for both
    directions unless the other one is there too. `via_client`: ordered pairs (a, b) where a cannot reach b, so that
    their leg costs those to and from this node. `upload_bps`: bytes/s that this node can send, 0 if unknown; `rates`:
    to peers to which the way was measured.
    `speeds`: from receipts, without waiting. `waits_s`: seconds a step waits in the peer's queue, from receipts of the
    last minute; takes the place of the announced queue. `hidden_s`: seconds that a peer keeps a step beyond what it
    says. `own`: what this node itself computes at, if it does. `penalties`: factors >= 1 and `banned`: see `Health`.
    `default_leg_s`: a leg that nobody has measured.
    """

    rtts_s: Mapping[str, float] = field(default_factory=dict)
    legs_s: Mapping[tuple[str, str], float] = field(default_factory=dict)
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    waits_s: Mapping[str, float] = field(default_factory=dict)
    hidden_s: Mapping[str, float] = field(default_factory=dict)
    own: Speed | None = None
    penalties: Mapping[str, float] = field(default_factory=dict)
    banned: frozenset[str] = frozenset()
    default_leg_s: float = DEFAULT_LEG_S
    via_client: frozenset[tuple[str, str]] = frozenset()
    upload_bps: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict)


def middle_leg_s(rtts_s: Mapping[str, float]) -> float:
    """Return the leg to peers in the middle of those measured: what one counts as that was not."""
    return median(rtts_s.values()) / 2 if rtts_s else DEFAULT_LEG_S
