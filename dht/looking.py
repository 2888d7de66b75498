"""One look-up of a swarm's records while it goes on. Knows whom it asks and what has come, not what records mean.

The first node to answer mostly knows all that the others do, and to meet the others takes several round trips: who is
in a hurry begins with what the first one said, while the look-up goes on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shoal.dht.foreign import PeerID
    from shoal.dht.node import Node
    from shoal.dht.opening import Backlog


class Looking:
    """Begins at once. Records that come, and are not `held`, go to `backlog`. named: nodes of which others told."""

    def __init__(self, node: Node, keys: Sequence[bytes], held: Iterable[bytes], backlog: Backlog) -> None:
        self.named: set[PeerID] = set()
        self._held, self._backlog = set(held), backlog
        self._first = asyncio.get_running_loop().create_future()
        self._work = asyncio.create_task(node.look(*keys, held=frozenset(self._held), listener=self))

    @property
    def over(self) -> bool:
        """Whether all nodes have answered or failed."""
        return self._work.done()

    def found(self, raws: Iterable[bytes]) -> None:
        """See `Listener`."""
        new = set(raws) - self._held
        self._held.update(new)  # others have it too, and it is opened once
        self._backlog.add(new)

    def answered(self, named: Iterable[PeerID]) -> None:
        """See `Listener`."""
        self.named.update(named)
        if not self._first.done():
            self._first.set_result(None)

    async def wait(self, *, for_all: bool) -> None:
        """Until all nodes have answered or failed, or the first has answered."""
        until = {self._work} if for_all else {self._work, self._first}
        await asyncio.wait(until, return_when=asyncio.FIRST_COMPLETED)
        if self._work.done() and not self._work.cancelled():
            self._work.result()  # an error in it is ours to tell

    async def end(self) -> None:
        """Ask nobody any more."""
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)
