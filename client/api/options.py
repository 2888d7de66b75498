"""How an API server behaves: limits, keys, names. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Doors:
    """Who may ask. `keys`: API keys, none for everybody. `hosts`: names that a Host header may have besides addresses
    and localhost. `origins`: pages of other sites that may ask, as `https://example.org`; `*` is all."""

    keys: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ApiOptions:
    """`name`: what the model is called. `max_in_flight`: sequences generated at a time. `read_s`: how long a request
    may take to arrive; `write_s`: how long a client may take no bytes. `default_tokens`: of an answer whose request
    names no limit. `wait_s`: how long a request waits for missing blocks. `activations`: as `SessionOptions.codec`.
    `speculate`: as `GenerationOptions`'."""

    name: str
    doors: Doors = field(default_factory=Doors)
    max_in_flight: int = 64
    max_body: int = 4 << 20
    read_s: float = 20.0
    write_s: float = 60.0
    default_tokens: int = 2048
    wait_s: float = 0.0
    activations: str = "auto"
    speculate: int = 0
