"""Dials into our own network that a stranger may have wanted: few of them, and how they failed is not told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from shoal.dht.allowance import Allowance

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

T = TypeVar("T")
NEAR_S = 1.0  # for an answer from our own network
BURST, PER_S = 32, 0.1  # addresses in it


class Knocks:
    """How many more addresses in our own network may be dialled. On the loop's clock."""

    def __init__(self) -> None:
        self._allowance = Allowance(BURST, PER_S)

    def take(self, near: Sequence[T]) -> Sequence[T]:
        """Those of these addresses that may be dialled now; that they are is noted."""
        now = asyncio.get_running_loop().time()
        taken = near[: max(0, self._allowance.left("", now))]
        self._allowance.draw("", len(taken), now)
        return taken


async def hushed(trying: Awaitable[T]) -> T:
    """A try that ends within `NEAR_S`. If it fails it fails no earlier: whoever had it made does not learn how."""
    from shoal.dht.foreign import P2PDaemonError

    loop = asyncio.get_running_loop()
    end = loop.time() + NEAR_S
    try:
        async with asyncio.timeout_at(end):
            return await trying
    except (OSError, P2PDaemonError):
        await asyncio.sleep(end - loop.time())
        raise
