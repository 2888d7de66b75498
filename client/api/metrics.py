"""What the server counts, for Prometheus, in a registry of its own; knows no endpoint.

Coverage of the swarm is read from the latest view when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric
    from shoal.client.generation import Piece
    from shoal.client.serving import Answer
    from shoal.routing.view import View

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self, view: Callable[[], View], in_flight: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("shoal_api_requests", "Requests answered.", ["endpoint", "status"], registry=registry)
        self._seconds = Histogram(
            "shoal_api_request_seconds", "Whole requests.", ["endpoint"], buckets=SECONDS, registry=registry
        )
        tokens = Counter(
            "shoal_api_tokens", "Tokens: of prompts, of those already known to all peers, and made.", ["kind"],
            registry=registry,
        )  # fmt: skip
        self._prompt, self._cached, self._made = (tokens.labels(kind) for kind in ("prompt", "cached", "completion"))
        self._first = Histogram(
            "shoal_api_time_to_first_token_seconds", "From the request to the first token.", buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self._each = Histogram(
            "shoal_api_time_per_token_seconds", "Between two tokens of an answer.", buckets=TOKEN_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._repairs = Counter("shoal_api_repairs", "Hops replaced after a failure.", registry=registry)
        self._moves = Counter("shoal_api_moves", "Hops replaced ahead of one.", registry=registry)
        gauge = Gauge("shoal_api_in_flight", "Answers being made.", registry=registry)
        gauge.set_function(in_flight)
        registry.register(Coverage(view))

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request; status 499: the client left."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def piece(self, answer: Answer, piece: Piece, before: Piece | None) -> None:
        """Count one token of an answer, made after `before`."""
        self._made.inc()
        if before is None:
            self._first.observe(piece.at - answer.started_at)
        else:
            self._each.observe(piece.at - before.at)

    def answered(self, answer: Answer) -> None:
        """Count what an answer, ended or broken off, took besides its tokens."""
        self._cached.inc(answer.cached_tokens)
        self._repairs.inc(answer.repairs)
        self._moves.inc(answer.moves)

    def prompt(self, tokens: int) -> None:
        """Count a prompt."""
        self._prompt.inc(tokens)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


class Coverage:
    """The swarm as gauges, made anew whenever they are read."""

    def __init__(self, view: Callable[[], View]) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """The gauges (prometheus_client's protocol)."""
        view = self._view()
        coverage = view.coverage()
        yield GaugeMetricFamily("shoal_swarm_blocks", "Blocks of the model.", view.n_blocks)
        covered = sum(count > 0 for count in coverage)
        yield GaugeMetricFamily("shoal_swarm_blocks_covered", "Blocks that some peer serves.", covered)
        least = min(coverage, default=0)
        yield GaugeMetricFamily("shoal_swarm_block_holders_min", "Peers of the block that has the fewest.", least)
        peers = GaugeMetricFamily("shoal_swarm_peers", "Peers that are known.", labels=["state"])
        for state in ("joining", "online", "draining"):
            peers.add_metric([state], sum(peer.state == state for peer in view.peers))
        yield peers
        free = sum(peer.free_tokens for peer in view.peers if peer.state == "online")
        yield GaugeMetricFamily("shoal_swarm_free_tokens", "KV tokens that somebody new could get.", free)
