"""A swarm joined on the background loop, left by `close`, by nobody needing it any more, or when the process ends."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from shoal.client.model.background import background, hold
from shoal.client.swarm import join_swarm
from shoal.peer.errors import SessionClosed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from shoal.client.model.background import Held
    from shoal.client.remote import RemoteSession
    from shoal.client.swarm import Model, SessionOptions, Swarm, SwarmOptions
    from shoal.dht.invite import Invite


class _Joined:
    """The swarm and the tasks whose sessions are open over it."""

    def __init__(self, held: Held[Swarm]) -> None:
        self.held, self.closed = held, False
        self.tasks: set[asyncio.Task[object]] = set()

    async def close(self) -> None:
        """End the sessions, which tells the peers, then leave."""
        self.closed = True
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(set(self.tasks))
        await self.held.close()


class Connection:
    """See `connect`; `swarm` is the one joined, for coroutines on the background loop: `background().run(...)`."""

    def __init__(self, held: Held[Swarm]) -> None:
        self.swarm = held.value
        self._joined = _Joined(held)
        background().at_exit(self._joined.close)
        self._forgotten = weakref.finalize(self, _leave, self._joined, wait=False)
        self._forgotten.atexit = False

    def session(self, options: SessionOptions) -> AbstractAsyncContextManager[RemoteSession]:
        """As `Swarm.session`; it ends with the connection. Errors: `SessionClosed` behind `close`."""
        return _session(self._joined, options)

    def close(self) -> None:
        """Leave the swarm; what was open over it ends."""
        if self._forgotten.detach() is not None:
            _leave(self._joined, wait=True)


def connect(invite: Invite, model: Model, options: SwarmOptions) -> Connection:
    """Join. Errors: `HostError` (no daemon, port taken), `JoinError` (nobody of the invite answers)."""
    return Connection(background().run(hold(join_swarm(invite, model, options))))


@asynccontextmanager
async def _session(joined: _Joined, options: SessionOptions) -> AsyncIterator[RemoteSession]:
    task = asyncio.current_task()
    if joined.closed or task is None:
        raise SessionClosed("The model was closed: load it again.")
    joined.tasks.add(task)
    try:
        async with joined.held.value.session(options) as session:
            yield session
    finally:
        joined.tasks.discard(task)


def _leave(joined: _Joined, *, wait: bool) -> None:
    background().not_at_exit(joined.close)
    if wait:
        background().run(joined.close())
    else:
        background().start(joined.close())
