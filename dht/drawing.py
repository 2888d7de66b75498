"""How much of a node's line and time strangers may take: each of them, all of one network, all together. Pure: told the
time and whence somebody comes; looks nothing up.

Identities cost nothing and addresses do. So what is bounded for each identity is bounded for its network (`keys`) as
well; and while all strangers together take too much, each network still gets a little, so that a newcomer from
elsewhere is answered beside a flood. Nodes that are known already, which are few of one network, have their own
allowance alone, and so has everybody in networks that are not counted.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shoal.dht.allowance import BURST_BYTES, BYTES_S, NAMES_BYTES, Allowance

MIB: Final = 1024 * 1024


class Bound(NamedTuple):
    """So much at once and so much a second."""

    burst: int
    per_s: float


class Bounds(NamedTuple):
    """Of what one network draws, and all of them together. lean: what each still draws once that is too much."""

    network: Bound
    together: Bound
    lean: Bound


class Shares:
    """What each network has left within `bounds`, and all of them."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._network, self._together, self._lean = (Allowance(*bound) for bound in bounds)

    def left(self, network: str, now: float, *, known: bool = False) -> int:
        """What somebody of a network may draw now. `known`: it is not held to the little."""
        left = self._network.left(network, now)
        return min(left, self._lean.left(network, now)) if self._scarce(now) and not known else left

    def wait_s(self, network: str, now: float) -> float:
        """Seconds until there is something left, if nobody draws meanwhile."""
        wait_s = -self._network.left(network, now) / self._bounds.network.per_s
        if self._scarce(now):
            lean_s = -self._lean.left(network, now) / self._bounds.lean.per_s
            wait_s = max(wait_s, min(lean_s, -self._together.left("", now) / self._bounds.together.per_s))
        return max(0.0, wait_s)

    def draw(self, network: str, size: int, now: float) -> None:
        """So much goes to somebody of a network."""
        self._network.draw(network, size, now)
        self._lean.draw(network, size, now)
        _draw_shared(self._together, self._bounds.together, size, now)

    def _scarce(self, now: float) -> bool:
        return self._together.left("", now) <= 0


class Drawing:
    """What one identity may draw (`each`), within the shares of networks. `unseen`: what all may before anybody is
    asked whence they come. `reserve`: the last part of it is for the smallest answers."""

    def __init__(self, each: Bound, bounds: Bounds, unseen: Bound, reserve: int = 0) -> None:
        self._each, self._shares = Allowance(*each), Shares(bounds)
        self._unseen, self._most_unseen, self._reserve = Allowance(*unseen), unseen, reserve

    def asks_whence(self, now: float) -> bool:
        """Whether it decides from which network a stranger comes."""
        return self._unseen.left("", now) <= 0

    def left(self, asker: str, network: str | None, now: float, *, known: bool) -> tuple[int, int]:
        """What an asker may draw now, and how much of that may be other than the smallest answers. `network`: None if
        it does not count; "" for all of whom it is not known. `known`: the asker is a node that we know."""
        left = self._each.left(asker, now)
        if network is not None:
            left = min(left, self._shares.left(network, now, known=known))
        return left, max(0, left - self._reserve)

    def draw(self, asker: str, network: str | None, size: int, now: float) -> None:
        """So much goes to an asker."""
        self._each.draw(asker, size, now)
        if network is not None:
            self._shares.draw(network, size, now)
            _draw_shared(self._unseen, self._most_unseen, size, now)


# Behind one address may be 64 clients that read a swarm of 4,096 peers (2.5 MiB as a rule) and follow it.
BYTES: Final = Bounds(Bound(256 * MIB, 8 * MIB), together=Bound(512 * MIB, 16 * MIB), lean=Bound(16 * MIB, MIB))
BYTES_UNSEEN: Final = Bound(64 * MIB, 4 * MIB)
# A signature takes a quarter of a millisecond to check. Peers announce every 15 s, each to ten nodes.
OFFERS_EACH: Final = Bound(32, 1.0)
OFFERS: Final = Bounds(Bound(1024, 64.0), together=Bound(4096, 512.0), lean=Bound(64, 8.0))
OFFERS_UNSEEN: Final = Bound(512, 64.0)


def bytes_drawn() -> Drawing:
    """Of a directory node's answers, in bytes."""
    return Drawing(Bound(BURST_BYTES, BYTES_S), BYTES, BYTES_UNSEEN, NAMES_BYTES)


def offers_drawn() -> Drawing:
    """Of the records that a directory node checks."""
    return Drawing(OFFERS_EACH, OFFERS, OFFERS_UNSEEN)


def _draw_shared(allowance: Allowance, bound: Bound, size: int, now: float) -> None:
    if allowance.left("", now) > -bound.burst:  # a flood is not held against others for long after its end
        allowance.draw("", size, now)
