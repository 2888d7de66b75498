"""Owns the price of a hop in seconds: network leg + queue + compute. Knows no search, no randomness, no network.

Work asked for: a prompt in chunks, then new tokens one by one. Every leg and every wait is paid once per new token and
once for the prompt; compute is paid per block. Chunks follow one another through the route as through a pipeline, so
a prompt of c chunks takes the sum of all stages plus (c - 1) times the slowest stage.

What is measured wins over what is announced. An unmeasured claim counts at most CLAIM_GAIN times better than the
swarm's median, the bar that Tor sets for relays that lie about their bandwidth: enough to be tried, too little to
matter much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from shoal.routing.bounds import BLOCK_S, LEG_S, MAX_PENALTY, RTT_S, WAIT_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray
    from shoal.routing.bounds import Range
    from shoal.routing.columns import Columns
    from shoal.routing.knowledge import Knowledge
    from shoal.routing.route import RouteRequest

CLAIM_GAIN: Final = 4 / 3
QUEUE_SHARE: Final = 0.15  # one more session in a batch slows the others by about this share of a lone step
HOP_OVERHEAD_S: Final = 0.0005  # framing, scheduling, receipt: why a hop is never free, even on loopback


@dataclass(frozen=True, slots=True)
class Work:
    """A request in figures: a prompt of `chunks` of `chunk_tokens` (may be fractional), then `steps` decode tokens."""

    steps: int
    chunks: int
    chunk_tokens: float

    @property
    def crossings(self) -> int:
        """How often each leg is paid."""
        return self.steps + (1 if self.chunks else 0)


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that a request costs at each of the peers `rows` (indices into the view's columns); arrays of one length.

    `start`, `stop`: the part of the peer's span within the request. `step_s`: one decode token, per block.
    `stage_s`: one prompt chunk, per block. `visit_s`: one step or prompt, per hop. `leg_in_s`: one first leg, were it
    the first hop; `leg_out_s`: one last leg, were it the last. `weight`: factor >= 1 on all but the last leg.
    """

    work: Work
    rows: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    step_s: NDArray[np.float64]
    stage_s: NDArray[np.float64]
    visit_s: NDArray[np.float64]
    leg_in_s: NDArray[np.float64]
    leg_out_s: NDArray[np.float64]
    weight: NDArray[np.float64]

    @property
    def block_s(self) -> NDArray[np.float64]:
        """Seconds per block for all the work but the waiting for slower stages."""
        return self.work.steps * self.step_s + self.stage_s


def usable(columns: Columns, request: RouteRequest, now: float) -> NDArray[np.bool_]:
    """Return which peers may serve any of the request: online, not expired, enough KV, neither avoided nor banned."""
    able: NDArray[np.bool_] = columns.online & (columns.expiry > now) & (columns.free_tokens >= request.kv_tokens)
    able &= (columns.start < request.stop) & (columns.stop > request.start)
    able[_rows(columns, request.avoid | request.knowledge.banned)] = False
    return able


def work_of(request: RouteRequest) -> Work:
    """Return the request in figures; one that asks for no token at all is priced as one decode token."""
    chunks = math.ceil(request.prompt_tokens / request.chunk_tokens)
    steps = request.new_tokens if request.new_tokens or chunks else 1
    return Work(steps, chunks, request.prompt_tokens / chunks if chunks else 0.0)


def price(columns: Columns, request: RouteRequest, rows: NDArray[np.int64]) -> Costs:
    """Return what the request costs at the peers `rows`."""
    knowledge, work = request.knowledge, work_of(request)
    decode_s, prefill_s = speeds(columns, knowledge)
    load = 1.0 + QUEUE_SHARE * columns.queue
    load[_rows(columns, knowledge.waits_s)] = 1.0
    wait_s = overlay(np.zeros(len(columns.ids)), columns, knowledge.waits_s, WAIT_S)
    weight = np.ones(len(columns.ids))
    for row, factor in _known(columns, knowledge.penalties):
        weight[row] = min(max(factor, 1.0), MAX_PENALTY)
    return Costs(
        work=work,
        rows=rows,
        start=np.maximum(columns.start[rows], request.start) - request.start,
        stop=np.minimum(columns.stop[rows], request.stop) - request.start,
        step_s=(load * decode_s)[rows],
        stage_s=(load * prefill_s)[rows] * work.chunk_tokens,
        visit_s=wait_s[rows] + HOP_OVERHEAD_S,
        leg_in_s=_end_legs(columns, knowledge, request.upstream, after=False)[rows],
        leg_out_s=_end_legs(columns, knowledge, request.downstream, after=True)[rows],
        weight=weight[rows],
    )


def speeds(columns: Columns, knowledge: Knowledge) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the seconds per token and block that each peer is believed to take: (decode, prefill)."""
    decode = {peer_id: speed.decode_s for peer_id, speed in knowledge.speeds.items()}
    prefill = {peer_id: speed.prefill_s for peer_id, speed in knowledge.speeds.items()}
    return _believed(columns, columns.decode_s, decode), _believed(columns, columns.prefill_s, prefill)


def _believed(
    columns: Columns, announced_s: NDArray[np.float64], measured_s: Mapping[str, float]
) -> NDArray[np.float64]:
    """Claims no better than CLAIM_GAIN times the median of what is best known, measurements as they are."""
    best_known = overlay(announced_s.copy(), columns, measured_s, BLOCK_S)[columns.online]
    if not best_known.size:
        return announced_s
    middle = best_known.size // 2
    median = np.partition(best_known, middle)[middle]
    return overlay(np.maximum(announced_s, median / CLAIM_GAIN), columns, measured_s, BLOCK_S)


def overlay(
    figures: NDArray[np.float64], columns: Columns, measured: Mapping[str, float], sane: Range
) -> NDArray[np.float64]:
    """Write the measured figures of known peers over `figures` and return it; what is no measurement is skipped."""
    for row, figure in _known(columns, measured):
        figures[row] = sane.clamp(figure)
    return figures


def leg_s(columns: Columns, knowledge: Knowledge, source: str, target: str) -> float:
    """Return the seconds one way between two peers: measured, else announced, else the default.

    Two peers are as far apart as the farther of their two claims; a claim that only one of them makes cannot bring
    them nearer than the default leg by more than CLAIM_GAIN.
    """
    measured = knowledge.legs_s.get((source, target), knowledge.legs_s.get((target, source)))
    if measured is not None and measured > 0.0:
        return LEG_S.clamp(measured)
    claims = [
        RTT_S.clamp(rtt_s) / 2
        for here, there in ((source, target), (target, source))
        if (row := columns.index.get(here)) is not None and (rtt_s := columns.rtts_s[row].get(there)) is not None
    ]
    default_s = LEG_S.clamp(knowledge.default_leg_s)
    if len(claims) == 1:
        return max(claims[0], default_s / CLAIM_GAIN)
    return max(claims, default=default_s)


def _end_legs(columns: Columns, knowledge: Knowledge, neighbour: str | None, *, after: bool) -> NDArray[np.float64]:
    """One-way seconds to every peer from what stands before the route, or from every peer to what stands `after` it:
    a peer, or None for the client."""
    legs = np.full(len(columns.ids), LEG_S.clamp(knowledge.default_leg_s))
    if neighbour is None:
        halves = {peer_id: rtt_s / 2 for peer_id, rtt_s in knowledge.rtts_s.items()}
        return overlay(legs, columns, halves, LEG_S)
    named = {peer_id for pair in knowledge.legs_s if neighbour in pair for peer_id in pair}
    named.update(peer_id for peer_id, rtts in zip(columns.ids, columns.rtts_s, strict=True) if neighbour in rtts)
    if (row := columns.index.get(neighbour)) is not None:
        named.update(columns.rtts_s[row])
    for row in _rows(columns, named):
        ends = (columns.ids[row], neighbour) if after else (neighbour, columns.ids[row])
        legs[row] = leg_s(columns, knowledge, *ends)
    return legs


def _known(columns: Columns, figures: Mapping[str, float]) -> Iterable[tuple[int, float]]:
    for peer_id, figure in figures.items():
        if math.isfinite(figure) and figure > 0.0 and (row := columns.index.get(peer_id)) is not None:
            yield row, figure


def _rows(columns: Columns, peer_ids: Iterable[str]) -> list[int]:
    return [columns.index[peer_id] for peer_id in peer_ids if peer_id in columns.index]
