"""What others' questions may cost a node: each asker so many bytes of its line at once and so many a second, and all of
them together so many lists of who is connected.

A question of 66 bytes can draw 3 MiB. Whoever follows the largest swarm there may be stays far below: reading it whole
takes 8 MiB, and what its 4,096 peers announce anew some 0.5 MiB/s.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

BURST_BYTES = 20 * 1024 * 1024
NAMES_BYTES = 4 * 1024 * 1024  # the last of it: who has drawn too many records still learns which nodes there are
BYTES_S = 1024 * 1024
SWEEP_EVERY_S = 10.0
LIST_TIMEOUT_S = 5.0
LIST_EVERY_S, LIST_MOST_S = 0.05, 1.0  # bounds of the pause after a list of who is connected
LIST_PAUSE = 9  # times what the list took: in the long run at most a tenth of the time goes into lists
CLOSED = "the host is being closed"
LIST_CREDIT_S = 5.0  # of pauses that may be left out: who joins meets many nodes at once, and should not wait for each


class Allowance:
    """What each asker has left of `burst` at once and `per_s` a second, told the time. As soon as all that one drew is
    paid for, nothing is kept of it."""

    def __init__(self, burst: int = BURST_BYTES, per_s: float = BYTES_S) -> None:
        self._burst, self._per_s = burst, per_s
        self._paid_at: dict[str, float] = {}  # asker -> when what it drew is paid for
        self._swept_at = float("-inf")

    def __len__(self) -> int:
        return len(self._paid_at)

    def left(self, asker: str, now: float) -> int:
        """What an asker may draw now; nothing if that is not above 0."""
        return self._burst - round(max(0.0, self._paid_at.get(asker, now) - now) * self._per_s)

    def draw(self, asker: str, size: int, now: float) -> None:
        """So much goes to an asker."""
        if now >= self._swept_at + SWEEP_EVERY_S:
            self._swept_at = now
            self._paid_at = {other: at for other, at in self._paid_at.items() if at > now}
        self._paid_at[asker] = max(self._paid_at.get(asker, now), now) + size / self._per_s


class Connected(NamedTuple):
    """A peer to which a connection stands, and the multiaddrs at its other end."""

    peer_id: str
    addrs: tuple[str, ...]


class Listing:
    """Who is connected, where any stranger's request may ask for it: all who ask while a list or a pause lasts share
    the next one, so that nobody gets a list that was made before it asked. Pauses begin where more than LIST_CREDIT_S
    of them are due. Errors: those of `ask`, `TimeoutError`, `ConnectionResetError` once it is closed."""

    def __init__(self, ask: Callable[[], Awaitable[Iterable[Any]]]) -> None:
        self._ask, self._due = ask, float("-inf")
        self._next: asyncio.Task[tuple[Connected, ...]] | None = None
        self._last: asyncio.Task[tuple[Connected, ...]] | None = None
        self._closed = False

    def close(self) -> None:
        """Ask no more: whoever waits hears of it, and no task stays behind."""
        self._closed = True
        for task in (self._next, self._last):
            if task is not None:
                task.cancel()

    async def __call__(self) -> tuple[Connected, ...]:
        if self._closed:
            raise ConnectionResetError(CLOSED)
        if self._next is None:
            self._next = asyncio.create_task(self._list())
            self._next.add_done_callback(lambda task: task.cancelled() or task.exception())  # all may have given up
        asked = self._next
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            ours = asyncio.current_task()
            if asked.cancelled() and ours is not None and not ours.cancelling():
                raise ConnectionResetError(CLOSED) from None
            raise

    async def _list(self) -> tuple[Connected, ...]:
        if self._last is not None:
            await asyncio.wait([self._last])
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._due - LIST_CREDIT_S - loop.time())
        began, self._last, self._next = loop.time(), self._next, None
        try:
            async with asyncio.timeout(LIST_TIMEOUT_S):
                return tuple(Connected(str(peer.peer_id), tuple(map(str, peer.addrs))) for peer in await self._ask())
        finally:
            ended = loop.time()
            pause = min(max(LIST_EVERY_S, LIST_PAUSE * (ended - began)), LIST_MOST_S)
            self._due = max(self._due, began) + ended - began + pause
