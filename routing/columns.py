"""Owns a view's peers as numpy columns, every figure inside its range. Knows no request, no measurement, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from shoal.routing.bounds import BLOCK_S, MAX_FREE_TOKENS, MAX_QUEUE, RTT_S, clamp_count, clamp_upload

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from shoal.routing.announcement import Announcement

DEFAULT_UPLOAD_BPS: Final = 12.5e6  # of who has measured none: 100 Mbit/s


@dataclass(frozen=True, slots=True)
class Columns:
    """One entry per peer, in the view's order; seconds are per token and block as announced.

    `byte_s`: seconds to send one byte, `said_rate`: whether they know. `rtts_s[i]`: what peer i says of its distance to
    others, as said; `rates[i]`: bytes/s that it says its ways to others carry, where that is less.
    `nearest_s[i]`: its nearest of those, infinite if none.
    """

    ids: tuple[str, ...]
    index: dict[str, int]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    online: NDArray[np.bool_]
    joining: NDArray[np.bool_]
    paused: NDArray[np.bool_]
    expiry: NDArray[np.float64]
    decode_s: NDArray[np.float64]
    prefill_s: NDArray[np.float64]
    queue: NDArray[np.float64]
    free_tokens: NDArray[np.int64]
    byte_s: NDArray[np.float64]
    said_rate: NDArray[np.bool_]
    rtts_s: tuple[dict[str, float], ...]
    rates: tuple[dict[str, float], ...]
    nearest_s: NDArray[np.float64]


def columns_of(peers: tuple[Announcement, ...]) -> Columns:
    """Return `peers` as columns."""
    rtts_s = tuple(dict(peer.rtts) for peer in peers)
    nearest_s = np.array([min(rtts.values(), default=np.inf) for rtts in rtts_s], dtype=np.float64)
    return Columns(
        ids=tuple(peer.peer_id for peer in peers),
        index={peer.peer_id: i for i, peer in enumerate(peers)},
        start=np.array([peer.start for peer in peers], dtype=np.int64),
        stop=np.array([peer.stop for peer in peers], dtype=np.int64),
        online=np.array([peer.state == "online" for peer in peers], dtype=np.bool_),
        joining=np.array([peer.state == "joining" for peer in peers], dtype=np.bool_),
        paused=np.array([peer.state == "paused" for peer in peers], dtype=np.bool_),
        expiry=np.array([peer.expiry for peer in peers], dtype=np.float64),
        decode_s=_clamped([peer.decode_s for peer in peers]),
        prefill_s=_clamped([peer.prefill_s for peer in peers]),
        queue=np.array([clamp_count(peer.queue, 0, MAX_QUEUE) for peer in peers], dtype=np.float64),
        free_tokens=np.array([clamp_count(peer.free_tokens, 0, MAX_FREE_TOKENS) for peer in peers], dtype=np.int64),
        byte_s=np.array([byte_s(peer.upload_bps) for peer in peers], dtype=np.float64),
        said_rate=np.array([clamp_upload(peer.upload_bps) > 0.0 for peer in peers], dtype=np.bool_),
        rtts_s=rtts_s,
        rates=tuple(dict(peer.rates) for peer in peers),
        nearest_s=np.where(nearest_s > 0.0, nearest_s, RTT_S.worst),
    )


def byte_s(upload_bps: float) -> float:
    """Return the seconds that one byte takes at a rate in bytes/s, 0 standing for one that nobody has measured."""
    return 1.0 / (clamp_upload(upload_bps) or DEFAULT_UPLOAD_BPS)


def _clamped(figures_s: list[float]) -> NDArray[np.float64]:
    figures = np.array(figures_s, dtype=np.float64)
    sane = np.isfinite(figures) & (figures > 0.0)
    return np.where(sane, np.clip(figures, BLOCK_S.best, BLOCK_S.worst), BLOCK_S.worst)
