"""Owns a view's peers as numpy columns, every figure inside its range. Knows no request, no measurement, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from shoal.routing.bounds import (
    BLOCK_S,
    MAX_FREE_TOKENS,
    MAX_QUEUE,
    MAX_UPLOAD_BPS,
    MIN_UPLOAD_BPS,
    RTT_S,
    clamp_upload,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from shoal.routing.announcement import Announcement

_ARRAYS: Final = (
    "start", "stop", "online", "joining", "paused", "expiry", "decode_s", "prefill_s", "queue", "free_tokens",
    "byte_s", "said_rate", "nearest_s",
)  # fmt: skip
DEFAULT_UPLOAD_BPS: Final = 12.5e6  # of who has measured none: 100 Mbit/s


@dataclass(frozen=True, slots=True)
class Columns:
    """One entry per peer, in the order of `peers`; seconds are per token and block as announced.

    `byte_s`: seconds to send one byte, `said_rate`: whether they know. `rtts_s[i]`: what peer i says of its distance to
    others, as said; `rates[i]`: bytes/s that it says its ways to others carry, where that is less.
    `nearest_s[i]`: its nearest of those, infinite if none.
    """

    peers: tuple[Announcement, ...]
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


def columns_of(peers: tuple[Announcement, ...], former: Columns | None = None) -> Columns:
    """Return `peers` as columns. Rows of the very announcements that `former` was made of are taken over."""
    if former is None or not former.ids:
        return _made(peers)
    ids = tuple(peer.peer_id for peer in peers)
    rows = [former.index.get(peer_id, -1) for peer_id in ids]
    new = [i for i, (row, peer) in enumerate(zip(rows, peers, strict=True)) if former.peers[row] is not peer]
    if 2 * len(new) > len(peers):
        return _made(peers)
    fresh = _made(tuple(peers[i] for i in new))
    for row, i in enumerate(new, start=len(former.ids)):
        rows[i] = row
    rtts_s, rates = former.rtts_s + fresh.rtts_s, former.rates + fresh.rates
    at = np.array(rows, dtype=np.int64)
    arrays = {name: np.concatenate([getattr(former, name), getattr(fresh, name)])[at] for name in _ARRAYS}
    return Columns(
        peers=peers,
        ids=ids,
        index=former.index if ids == former.ids else _index(ids),
        rtts_s=tuple(rtts_s[row] for row in rows),
        rates=tuple(rates[row] for row in rows),
        **arrays,
    )


def _made(peers: tuple[Announcement, ...]) -> Columns:
    ids = tuple(peer.peer_id for peer in peers)
    rtts_s = tuple(dict(peer.rtts) for peer in peers)
    upload_bps = _rates([peer.upload_bps for peer in peers])
    nearest_s = np.array([min(rtts.values(), default=np.inf) for rtts in rtts_s], dtype=np.float64)
    return Columns(
        peers=peers,
        ids=ids,
        index=_index(ids),
        start=np.array([peer.start for peer in peers], dtype=np.int64),
        stop=np.array([peer.stop for peer in peers], dtype=np.int64),
        online=np.array([peer.state == "online" for peer in peers], dtype=np.bool_),
        joining=np.array([peer.state == "joining" for peer in peers], dtype=np.bool_),
        paused=np.array([peer.state == "paused" for peer in peers], dtype=np.bool_),
        expiry=np.array([peer.expiry for peer in peers], dtype=np.float64),
        decode_s=_clamped([peer.decode_s for peer in peers]),
        prefill_s=_clamped([peer.prefill_s for peer in peers]),
        queue=_counts([peer.queue for peer in peers], MAX_QUEUE),
        free_tokens=_counts([peer.free_tokens for peer in peers], MAX_FREE_TOKENS).astype(np.int64),
        byte_s=1.0 / np.where(upload_bps > 0.0, upload_bps, DEFAULT_UPLOAD_BPS),
        said_rate=upload_bps > 0.0,
        rtts_s=rtts_s,
        rates=tuple(dict(peer.rates) for peer in peers),
        nearest_s=np.where(nearest_s > 0.0, nearest_s, RTT_S.worst),
    )


def _index(ids: tuple[str, ...]) -> dict[str, int]:
    return {peer_id: i for i, peer_id in enumerate(ids)}


def byte_s(upload_bps: float) -> float:
    """Return the seconds that one byte takes at a rate in bytes/s, 0 standing for one that nobody has measured."""
    return 1.0 / (clamp_upload(upload_bps) or DEFAULT_UPLOAD_BPS)


def _clamped(figures_s: list[float]) -> NDArray[np.float64]:
    figures = np.array(figures_s, dtype=np.float64)
    sane = np.isfinite(figures) & (figures > 0.0)
    return np.where(sane, np.clip(figures, BLOCK_S.best, BLOCK_S.worst), BLOCK_S.worst)


def _counts(counts: list[int], most: int) -> NDArray[np.float64]:
    return np.clip(np.array(counts, dtype=np.float64), 0.0, most)


def _rates(bytes_per_s: list[float]) -> NDArray[np.float64]:
    """As `clamp_upload` does it."""
    rates = np.array(bytes_per_s, dtype=np.float64)
    sane = np.isfinite(rates) & (rates > 0.0)
    return np.where(sane, np.clip(rates, MIN_UPLOAD_BPS, MAX_UPLOAD_BPS), 0.0)
