"""From which networks the things that a store keeps came, and which network has most. Pure; each call is short work."""

from __future__ import annotations

from collections import defaultdict
from typing import Generic, TypeVar

T = TypeVar("T")


class Crowds(Generic[T]):
    """Things by network, in the order in which they came."""

    def __init__(self) -> None:
        self._of: defaultdict[str, dict[T, None]] = defaultdict(dict)
        self._by_size: defaultdict[int, dict[str, None]] = defaultdict(dict)
        self._most = 0

    def add(self, network: str, thing: T) -> None:
        """It came from there."""
        crowd = self._of[network]
        if thing not in crowd:
            self._resize(network, len(crowd), len(crowd) + 1)
            crowd[thing] = None

    def remove(self, network: str, thing: T) -> None:
        """It is gone, if it was there."""
        crowd = self._of.get(network, {})
        if thing in crowd:
            self._resize(network, len(crowd), len(crowd) - 1)
            del crowd[thing]
            if not crowd:
                del self._of[network]

    def one_too_many(self, network: str | None) -> T | None:
        """The newest thing of the network that has most, if it would still have more without it than `network` (None:
        one that is not counted) with another one."""
        own = len(self._of.get(network, ())) if network is not None else 0
        if self._most <= own + 1:
            return None
        crowd = self._of[next(iter(self._by_size[self._most]))]
        return next(reversed(crowd))

    def _resize(self, network: str, size: int, to: int) -> None:
        self._by_size[size].pop(network, None)
        if not self._by_size[size]:
            del self._by_size[size]
        if to:
            self._by_size[to][network] = None
        self._most = to if to > self._most or (size == self._most and size not in self._by_size) else self._most
