"""Where a client stands when it joins a swarm: options, and what the simulation brings instead. Data only."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.dht.directory import Directory
    from shoal.dht.identity import Identity
    from shoal.dht.invite import Invite
    from shoal.peer.transport import Transport


@dataclass(frozen=True, slots=True)
class SwarmOptions:
    """How a client joins: `identity` None makes a fresh one; `listen` empty: by the invite; `refresh_s` between
    look-ups."""

    identity: Identity | None = None
    listen: str = ""
    port: int = 0
    refresh_s: float = 5.0


@dataclass(frozen=True)
class Place:
    """Where a swarm object stands: the network, the directory, clocks and chance. The simulation brings its own."""

    transport: Transport
    directory: Directory
    invite: Invite
    refresh_s: float = 5.0
    wall: Callable[[], float] = time.time
    clock: Callable[[], float] = time.perf_counter
    rng: random.Random = field(default_factory=random.Random)
    random_bytes: Callable[[int], bytes] = os.urandom
