"""What a client says of its model and of each session. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.client.prefix import Prompt

FEW = 3  # as many others' words go into an error's line


@dataclass(frozen=True, slots=True)
class Model:
    """What a client must know of the model to route through it."""

    n_blocks: int
    width: int
    revision: str

    def beside(self, others: Mapping[str, str]) -> str:
        """A hint for people whose model has peers, by peer id, that serve other revisions of it; empty if none do."""
        if not others:
            return ""
        names = sorted(set(others.values()))
        named = ", ".join(names[:FEW]) + (" and others" if len(names) > FEW else "")
        return f"{len(others)} peers serve revision {named}, this client has {self.revision}."


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """`max_tokens` positions through blocks `[start, stop)` (None: all); hidden states are of `dtype` and travel in the
    form `codec`: one of `blocks.formats.FORMS`, None for as they are, or "auto" for int8 where 16-bit ones would be
    longer on the route's slowest line than in its slowest hop, else as they are.

    `priority` 1: behind all that others wait for. `prompt`: the tokens that it will begin with, if they are known;
    peers may hold their KV from an earlier session of this swarm object. `chunk_tokens` of a prompt are sent at a time
    (None: as suits the route).
    """

    max_tokens: int
    start: int = 0
    stop: int | None = None
    dtype: str = "float32"
    codec: str | None = None
    chunk_tokens: int | None = None
    wait_s: float = 0.0
    priority: int = 0
    prompt: Prompt | None = None
