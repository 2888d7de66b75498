"""What a client has found out about peers by using them: speeds, waits, legs and failures. No network, no clock.

A peer's receipts say how long it computed and how long a step waited; the client's own clock says how long it kept the
step in all, and that wins (`client/explain.py`): a peer that understates its times gains nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from shoal.client.apart import Apart
from shoal.client.explain import explain
from shoal.peer.errors import HopClosed, HopRefused, Reason
from shoal.routing.chunks import LEAST_MORE
from shoal.routing.cost import HOP_OVERHEAD_S
from shoal.routing.health import Health
from shoal.routing.knowledge import CHUNK_MEASURED, Knowledge, Speed, middle_leg_s
from shoal.routing.legs import believed_byte_s, client_byte_s, sent_s

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shoal.client.times import HopTimes
    from shoal.peer.errors import HopError
    from shoal.routing.columns import Columns

OLD_STEPS: Final = 16  # what was known before weighs as much as so many steps
MEMORY_S: Final = 900.0  # a peer that was slow may be well again
RUSH_S: Final = 60.0  # how many wait for a peer changes sooner: past this, what it announces of that counts again
MAX_PEERS: Final = 4096
MAX_BEFORE: Final = 32
HIDDEN_S: Final = 0.002  # less than this may be the network's
_BLAMELESS = frozenset({Reason.BUSY, Reason.DRAINING, Reason.UNKNOWN_LEASE, Reason.NO_SUCH_BLOCKS})


@dataclass(slots=True)
class _Mean:
    """A figure that follows what is seen: not a number until it is."""

    figure: float = math.nan

    def fold(self, seen: float, steps: int) -> None:
        """Move towards what `steps` steps have shown."""
        old = 0.0 if math.isnan(self.figure) else OLD_STEPS / (OLD_STEPS + steps)
        self.figure = seen if not old else old * self.figure + (1.0 - old) * seen


class _Peer:
    """What is known of one peer. `beyond_s`: what of the time from a node's news to this peer's own is not in its
    receipts, by that node: the messages' way, and what it does not say."""

    def __init__(self) -> None:
        self.at = 0.0
        self.decode_s, self.prefill_s, self.wait_s, self.token_s = _Mean(), _Mean(), _Mean(), _Mean()
        self.beyond_s: dict[str, _Mean] = {}
        self.carried: dict[str, _Mean] = {}  # bytes that came meanwhile

    def fold(self, times: HopTimes) -> None:
        if times.steps:
            self.wait_s.fold(times.queue_s / times.steps, times.steps)
        if times.decode_steps:
            self.decode_s.fold(times.decode_s / times.decode_steps, times.decode_steps)
            self.token_s.fold(times.token_s / times.decode_steps, times.decode_steps)
        if times.prompt_tokens:
            self.prefill_s.fold(self._prefill_s(times), times.prompt_tokens)
        for before, kept in times.kept.items():
            for means, seen in ((self.beyond_s, kept.seconds / kept.steps - HOP_OVERHEAD_S),
                                (self.carried, kept.n_bytes / kept.steps)):  # fmt: skip
                mean = means.pop(before, None) or _Mean()
                mean.fold(seen, kept.steps)
                means[before] = mean
        for before in list(self.beyond_s)[: max(0, len(self.beyond_s) - MAX_BEFORE)]:
            del self.beyond_s[before], self.carried[before]

    def _prefill_s(self, times: HopTimes) -> float:
        """Seconds per token of a chunk of CHUNK_MEASURED: of each chunk, whatever its size, what a lone token takes is
        held to be there once, the rest to grow with its tokens."""
        step_s = _or_zero(self.decode_s.figure)
        more_s = max(times.prompt_s - times.prompt_steps * step_s, LEAST_MORE * times.prompt_s) / times.prompt_tokens
        return more_s + step_s / CHUNK_MEASURED

    def speed(self, hidden_s: float) -> Speed:
        """What it says of its computing, prompts too being held to take so many times longer as a token does."""
        lies = hidden_s / max(self.token_s.figure, 1e-6) if hidden_s > HIDDEN_S else 1.0
        return Speed(self.decode_s.figure, self.prefill_s.figure * max(1.0, lies))


class Measured:
    """Folds sessions' times and failures into the `Knowledge` that planning takes."""

    def __init__(self) -> None:
        self.health, self.apart = Health(), Apart()
        self._peers: dict[str, _Peer] = {}
        self._rtts: dict[str, tuple[float, float]] = {}  # the last one of each peer, and when

    def learn(self, news: Mapping[str, HopTimes], now: float) -> None:
        """Fold what sessions saw since the last time."""
        for peer_id, times in news.items():
            peer = self._peers.pop(peer_id, None)
            if peer is None or now - peer.at >= MEMORY_S:  # what was forgotten does not come back with a new token
                peer = _Peer()
            peer.at = now
            peer.fold(times)
            self._peers[peer_id] = peer
        _keep_newest(self._peers)

    def served(self, peer_ids: Iterable[str], now: float) -> None:
        """A session ended well with these hops."""
        for peer_id in peer_ids:
            self.health.success(peer_id, now)

    def failed(self, error: HopError, now: float) -> None:
        """A hop failed. One that is merely full, leaving or restarted did nothing wrong."""
        if not isinstance(error, HopRefused) or error.reason not in _BLAMELESS:
            self.health.failure(error.peer_id, now)
        if isinstance(error, HopClosed):
            self.apart.forget(error.peer_id)  # nobody reached it

    def knowledge(
        self,
        columns: Columns,
        rtts_s: Mapping[str, float],
        now: float,
        upload_bps: float = 0.0,
        rates: Mapping[str, float] | None = None,
    ) -> Knowledge:
        """Everything measured lately, of peers of the view `columns`. `rtts_s`: to the peers that the client is
        connected to now; `upload_bps` and `rates`: of its lines. A peer that it never was connected to counts as being
        as far away as those in the middle."""
        for peer_id, rtt_s in rtts_s.items():
            self._rtts.pop(peer_id, None)
            self._rtts[peer_id] = (rtt_s, now)
        _keep_newest(self._rtts)
        distances = {peer_id: rtt_s for peer_id, (rtt_s, at) in self._rtts.items() if now - at < MEMORY_S}
        known = {peer_id: peer for peer_id, peer in self._peers.items() if now - peer.at < MEMORY_S}
        base = Knowledge(
            rtts_s=distances, penalties=self.health.penalties(now), banned=self.health.banned(now),
            default_leg_s=middle_leg_s(distances), via_client=self.apart.pairs(now), upload_bps=upload_bps,
            rates=rates or {},
        )  # fmt: skip
        found = explain(columns, base, _without_bytes(columns, base, known))
        hidden_s = found.hidden_s
        lately = {peer_id: peer for peer_id, peer in known.items() if now - peer.at < RUSH_S}
        return replace(
            base, rtts_s=found.rtts_s, legs_s=found.legs_s, default_leg_s=middle_leg_s(found.rtts_s),
            speeds={peer_id: peer.speed(hidden_s[peer_id]) for peer_id, peer in known.items()},
            waits_s={i: _or_zero(peer.wait_s.figure) for i, peer in lately.items()}, hidden_s=hidden_s,
        )  # fmt: skip


def _keep_newest(known: dict[str, Any]) -> None:
    """Those that were used last stand last."""
    for peer_id in list(known)[: max(0, len(known) - MAX_PEERS)]:
        del known[peer_id]


def _without_bytes(columns: Columns, base: Knowledge, known: Mapping[str, _Peer]) -> dict[str, dict[str, float]]:
    """By peer and by the node before it, `beyond_s` less what the bytes of a token take over lines of a known rate: a
    slow line is nobody's secret, and planning counts it by itself."""
    line_s = believed_byte_s(columns)

    def from_client(peer_id: str) -> float:
        return client_byte_s(base, peer_id) if base.rates.get(peer_id, base.upload_bps) else 0.0

    def byte_s(before: str, peer_id: str) -> float:
        if not before:
            return from_client(peer_id)
        row = columns.index.get(before)
        if row is None or not (columns.said_rate[row] or peer_id in columns.rates[row]):
            return 0.0
        again_s = from_client(peer_id) if (before, peer_id) in base.via_client else 0.0
        return sent_s(columns, before, peer_id, float(line_s[row])) + again_s

    return {
        peer_id: {
            before: mean.figure - peer.carried[before].figure * byte_s(before, peer_id)
            for before, mean in peer.beyond_s.items()
        }
        for peer_id, peer in known.items()
    }


def _or_zero(figure: float) -> float:
    return 0.0 if math.isnan(figure) else figure
