"""A swarm joined on the background loop, left by `close`, by nobody needing it any more, or when the process ends."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from shoal.client.model.background import background, hold
from shoal.client.swarm import join_swarm

if TYPE_CHECKING:
    from shoal.client.model.background import Held
    from shoal.client.swarm import Model, Swarm, SwarmOptions
    from shoal.dht.invite import Invite


class Connection:
    """See `connect`; `swarm` is the one joined. Its coroutines run on the background loop: `background().run(...)`."""

    def __init__(self, held: Held[Swarm]) -> None:
        self.swarm = held.value
        background().at_exit(held.close)
        self._close = weakref.finalize(self, _leave, held, wait=False)
        self._close.atexit = False
        self._held = held

    def close(self) -> None:
        """Leave the swarm; what was open over it ends."""
        if self._close.detach() is not None:
            _leave(self._held, wait=True)


def connect(invite: Invite, model: Model, options: SwarmOptions) -> Connection:
    """Join. Errors: `HostError` (no daemon, port taken), `JoinError` (nobody of the invite answers)."""
    return Connection(background().run(hold(join_swarm(invite, model, options))))


def _leave(held: Held[Swarm], *, wait: bool) -> None:
    background().not_at_exit(held.close)
    if wait:
        background().run(held.close())
    else:
        background().start(held.close())
