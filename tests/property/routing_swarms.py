"""Owns how the routing tests make swarms: one peer with defaults, hypothesis strategies for many. Knows no planner."""

from __future__ import annotations

from hypothesis import strategies as st
from shoal.routing.announcement import Announcement
from shoal.routing.view import View, fold

NOW = 1_000.0
ABSURD = [0.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e308, 5e-324, 1e-300]


def peer(peer_id: str, start: int, stop: int, decode_s: float = 0.01, **fields) -> Announcement:
    """An online peer; `fields` override the rest."""
    defaults = {
        "sequence": 1,
        "expiry": NOW + 60,
        "state": "online",
        "quantization": "none",
        "dtype": "float32",
        "prefill_s": decode_s / 10,
        "queue": 0,
        "free_tokens": 10_000,
        "max_chunk": 512,
        "addrs": ("/ip4/127.0.0.1/tcp/1",),
        "rtts": (),
        "version": "0.1.0",
        "name": "",
        "revision": "r",
    }
    asked = {"peer_id": peer_id, "start": start, "stop": stop, "decode_s": decode_s}
    return Announcement(**{**defaults, **asked, **fields})


def swarm(n_blocks: int, *peers: Announcement) -> View:
    return fold(View(n_blocks), peers, NOW)


def peer_ids(count: int) -> list[str]:
    return [f"peer{i}" for i in range(count)]


@st.composite
def announcements(draw, peer_id: str, others: list[str], n_blocks: int, seconds=None) -> Announcement:
    if seconds is None:
        seconds = st.sampled_from([0.0001, 0.002, 0.02, 0.1, 0.5])
    start = max(0, draw(st.integers(-n_blocks // 2, n_blocks - 1)))
    known = draw(st.lists(st.sampled_from(others), max_size=3, unique=True))
    return peer(
        peer_id,
        start,
        draw(st.integers(start + 1, n_blocks)),
        draw(seconds),
        prefill_s=draw(seconds),
        queue=draw(st.integers(0, 8)),
        free_tokens=draw(st.sampled_from([10_000, 10_000, 100])),
        state=draw(st.sampled_from(["online"] * 12 + ["joining", "draining", "paused"])),
        expiry=draw(st.sampled_from([NOW + 30] * 9 + [NOW - 1])),
        rtts=tuple((other, draw(seconds)) for other in known),
        upload_bps=draw(st.sampled_from([0.0, 1e5, 1e6, 1e9])),
        rates=tuple((other, draw(st.sampled_from([2e3, 5e4, 5e7]))) for other in known[:2]),
    )


@st.composite
def views(draw, max_peers: int = 5, max_blocks: int = 5, seconds=None) -> View:
    """Any small swarm, often with holes. Expired peers stay in: a view ages while it is used."""
    n_blocks = draw(st.sampled_from([max_blocks, max_blocks - 1, 2, 1]))
    ids = peer_ids(draw(st.sampled_from([max_peers, max_peers - 1, 2, 1, 0])))
    peers = [draw(announcements(i, ids, n_blocks, seconds)) for i in ids]
    return fold(View(n_blocks), peers, NOW - 100)
