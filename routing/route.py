"""Owns the words of planning: what is asked (RouteRequest), what comes back (Route of Hops, or NoRoute). Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from shoal.routing.knowledge import Knowledge

CHUNK_TOKENS: Final = 256


@dataclass(frozen=True, slots=True)
class Hop:
    """Blocks `start`..`stop` (half-open) served by one peer; any sub-range of that peer's span."""

    peer_id: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Route:
    """Hops that tile the blocks asked for, in order; no peer appears twice.

    `expected_s`: seconds for all the work asked for; of it `prefill_s` until the prompt has passed the last hop, and
    `token_s` for each new token. Legs from and to the neighbours are in.
    """

    hops: tuple[Hop, ...]
    expected_s: float
    prefill_s: float = 0.0
    token_s: float = 0.0


@dataclass(frozen=True, slots=True)
class NoRoute:
    """`missing`: exactly the blocks asked for that no usable peer holds. `reason`: one sentence for the user."""

    missing: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """Work to route through blocks `start`..`stop`.

    `prompt_tokens` pass in chunks of `chunk_tokens`, then `new_tokens` one by one; `kv_tokens` must be free on each
    peer but `ours`, which hold as much for the same session already. `token_bytes`: what one token's hidden states take
    on the wire (0: only the latency of a leg counts).
    `upstream` and `downstream` are the peers before and after the blocks (a repair), None where that is the client;
    whoever repairs adds the peers that keep their hops to `avoid`, so that no peer serves twice.
    Raises ValueError for an empty span or a negative count.
    """

    start: int
    stop: int
    prompt_tokens: int = 0
    new_tokens: int = 1
    kv_tokens: int = 0
    avoid: frozenset[str] = frozenset()
    knowledge: Knowledge = field(default_factory=Knowledge)
    upstream: str | None = None
    downstream: str | None = None
    chunk_tokens: int = CHUNK_TOKENS
    token_bytes: int = 0
    ours: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"blocks {self.start}:{self.stop} are not a span")
        if min(self.prompt_tokens, self.new_tokens, self.kv_tokens, self.token_bytes) < 0 or self.chunk_tokens < 1:
            raise ValueError("counts of tokens and bytes cannot be negative, and a chunk holds at least one token")
