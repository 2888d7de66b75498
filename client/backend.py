"""What a remote session needs of its surroundings: a swarm to ask, and how it is used. Interfaces and data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.client.actions import Plan, SessionTerms, Work
    from shoal.peer.errors import HopError
    from shoal.peer.wire import Message
    from shoal.routing.planner import Hop, NoRoute, Route


class Backend(Protocol):
    """What a session needs of its swarm."""

    def send(self, peer_id: str, message: Message) -> None:
        """Queue a message to a peer."""
        ...

    def clogged(self, hops: Sequence[Hop]) -> bool:
        """Whether so much waits for the first hop that more should not be made yet; `RemoteSession.on_room` tells the
        end."""
        ...

    def plan(self, plan: Plan, work: Work) -> Route | NoRoute:
        """Hops for a lost span and what they will have to do, from the latest view."""
        ...

    async def refresh(self) -> object:
        """Look the swarm up again."""
        ...

    def chunk_tokens(self, hops: Sequence[Hop], tokens: int, token_bytes: int) -> int:
        """In which pieces a prompt passes a route soonest."""
        ...

    def held(self, terms: SessionTerms, token_ids: Sequence[int], hops: tuple[Hop, ...]) -> None:
        """These hops hold the KV of the tokens that a session of such terms began with."""
        ...

    def blame(self, error: HopError) -> None:
        """Remember a failure."""
        ...

    def apart(self, source: str, target: str) -> None:
        """Remember that one peer does not reach another."""
        ...


@dataclass(frozen=True, slots=True)
class Shape:
    """How a session is used: `chunk_tokens` of a prompt a step (None: as suits the route), how long to wait for a
    route, and the `dtype` of the tensors that go in and come out (they travel in the form that its terms say)."""

    chunk_tokens: int | None
    wait_s: float
    dtype: str
