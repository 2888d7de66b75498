"""Owns the price of a hop in seconds: network leg + queue + compute. Knows no search, no randomness, no network.

Work asked for: a prompt in chunks, then new tokens one by one. Every leg and every wait is paid once per new token and
once for the prompt; compute is paid per block, and what is sent per byte. Chunks follow one another through the route
as through a pipeline whose stages are the computing of a hop and the sending of a leg, so a prompt of c chunks takes
the sum of all stages plus (c - 1) times the slowest stage.

What is measured wins over what is announced. An unmeasured claim counts at most CLAIM_GAIN times better than the
swarm's median (or than the speed of who looks, if it computes itself), the bar that Tor sets for relays that lie about
their bandwidth: enough to be tried, too little to matter much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from shoal.routing.bounds import BLOCK_S, CLAIM_GAIN, MAX_PENALTY, WAIT_S
from shoal.routing.knowledge import Speed
from shoal.routing.legs import legs_in, legs_out, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray
    from shoal.routing.bounds import Range
    from shoal.routing.columns import Columns
    from shoal.routing.knowledge import Knowledge
    from shoal.routing.legs import Legs
    from shoal.routing.route import RouteRequest

QUEUE_SHARE: Final = 0.15  # one more session in a batch slows the others by about this share of a lone step
HOP_OVERHEAD_S: Final = 0.0005  # framing, scheduling, receipt: why a hop is never free, even on loopback


@dataclass(frozen=True, slots=True)
class Work:
    """A request in figures: a prompt of `chunks` of `chunk_tokens` (may be fractional), then `steps` decode tokens.
    `token_bytes`: what a token is on the wire. `home`: the last leg goes to the client, which of a prompt wants only
    the last token's states."""

    steps: int
    chunks: int
    chunk_tokens: float
    token_bytes: int = 0
    home: bool = True

    @property
    def crossings(self) -> int:
        """How often each leg is paid."""
        return self.steps + (1 if self.chunks else 0)

    @property
    def chunk_bytes(self) -> float:
        """One chunk on the wire."""
        return self.token_bytes * self.chunk_tokens

    @property
    def carried(self) -> float:
        """Bytes that each leg but the last carries while nothing waits: all new tokens and one chunk."""
        return self.token_bytes * self.steps + self.chunk_bytes

    @property
    def returned(self) -> float:
        """The same for the last leg."""
        return self.token_bytes * self.crossings if self.home else self.carried


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that a request costs at each of the peers `rows` (indices into the view's columns); arrays of one length.

    `start`, `stop`: the part of the peer's span within the request. `step_s`: one decode token, per block.
    `stage_s`: one prompt chunk, per block. `visit_s`: one step or prompt, per hop. `into`: the first leg, were it the
    first hop; `out`: the last leg, were it the last. `weight`: factor >= 1 on all but the last leg.
    """

    work: Work
    rows: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    step_s: NDArray[np.float64]
    stage_s: NDArray[np.float64]
    visit_s: NDArray[np.float64]
    into: Legs
    out: Legs
    weight: NDArray[np.float64]

    @property
    def block_s(self) -> NDArray[np.float64]:
        """Seconds per block for all the work but the waiting for slower stages."""
        return self.work.steps * self.step_s + self.stage_s

    @property
    def first_s(self) -> NDArray[np.float64]:
        """Seconds of entering the route there."""
        work = self.work
        return work.crossings * (self.into.latency_s + self.visit_s) + work.carried * self.into.byte_s

    @property
    def last_s(self) -> NDArray[np.float64]:
        """Seconds of leaving the route from there."""
        return self.work.crossings * self.out.latency_s + self.work.returned * self.out.byte_s

    def at(self, chosen: NDArray[np.int64]) -> Costs:
        """Return the costs of the peers at the places `chosen`."""
        arrays = ("rows", "start", "stop", "step_s", "stage_s", "visit_s", "weight")
        into, out = self.into.at(chosen), self.out.at(chosen)
        return replace(self, into=into, out=out, **{name: getattr(self, name)[chosen] for name in arrays})


def usable(columns: Columns, request: RouteRequest, now: float) -> NDArray[np.bool_]:
    """Return which peers may serve any of the request: online, not expired, enough KV, neither avoided nor banned."""
    able: NDArray[np.bool_] = columns.free_tokens >= request.kv_tokens
    able[rows_of(columns, request.ours)] = True
    able &= columns.online & (columns.expiry > now)
    able &= (columns.start < request.stop) & (columns.stop > request.start)
    able[rows_of(columns, request.avoid | request.knowledge.banned)] = False
    return able


def work_of(request: RouteRequest) -> Work:
    """Return the request in figures; one that asks for no token at all is priced as one decode token."""
    chunks = math.ceil(request.prompt_tokens / request.chunk_tokens)
    steps = request.new_tokens if request.new_tokens or chunks else 1
    chunk_tokens = request.prompt_tokens / chunks if chunks else 0.0
    return Work(steps, chunks, chunk_tokens, request.token_bytes, request.downstream is None)


def price(columns: Columns, request: RouteRequest, rows: NDArray[np.int64]) -> Costs:
    """Return what the request costs at the peers `rows`."""
    knowledge, work = request.knowledge, work_of(request)
    decode_s, prefill_s = speeds(columns, knowledge)
    load = 1.0 + QUEUE_SHARE * columns.queue
    load[rows_of(columns, knowledge.waits_s)] = 1.0
    wait_s = overlay(np.zeros(len(columns.ids)), columns, knowledge.waits_s, WAIT_S)
    wait_s += overlay(np.zeros(len(columns.ids)), columns, knowledge.hidden_s, WAIT_S)
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
        into=legs_in(columns, knowledge, request.upstream).at(rows),
        out=legs_out(columns, knowledge, request.downstream).at(rows),
        weight=weight[rows],
    )


def speeds(columns: Columns, knowledge: Knowledge) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the seconds per token and block that each peer is believed to take: (decode, prefill)."""
    decode = {peer_id: speed.decode_s for peer_id, speed in knowledge.speeds.items()}
    prefill = {peer_id: speed.prefill_s for peer_id, speed in knowledge.speeds.items()}
    own = knowledge.own or Speed(math.inf, math.inf)
    return (
        _believed(columns, columns.decode_s, decode, own.decode_s),
        _believed(columns, columns.prefill_s, prefill, own.prefill_s),
    )


def _believed(
    columns: Columns, announced_s: NDArray[np.float64], measured_s: Mapping[str, float], own_s: float
) -> NDArray[np.float64]:
    """Claims no better than CLAIM_GAIN times the median of what is best known, or what this node itself computes at if
    that is better: such machines exist. Measurements as they are."""
    best_known = overlay(announced_s.copy(), columns, measured_s, BLOCK_S)[columns.online]
    if not best_known.size:
        return announced_s
    middle = best_known.size // 2
    bar_s = min(float(np.partition(best_known, middle)[middle]), BLOCK_S.clamp(own_s))
    return overlay(np.maximum(announced_s, bar_s / CLAIM_GAIN), columns, measured_s, BLOCK_S)


def overlay(
    figures: NDArray[np.float64], columns: Columns, measured: Mapping[str, float], sane: Range
) -> NDArray[np.float64]:
    """Write the measured figures of known peers over `figures` and return it; what is no measurement is skipped."""
    for row, figure in _known(columns, measured):
        figures[row] = sane.clamp(figure)
    return figures


def _known(columns: Columns, figures: Mapping[str, float]) -> Iterable[tuple[int, float]]:
    for peer_id, figure in figures.items():
        if math.isfinite(figure) and figure > 0.0 and (row := columns.index.get(peer_id)) is not None:
            yield row, figure
