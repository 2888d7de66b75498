"""How many addresses strangers may make this peer dial: each of them, those of one network, and all together; and whose
are tried where more are named than can be. Pure: told the time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.dht.allowance import Allowance
from shoal.dht.named import MAX_PLACES_EACH, NAMED, is_far

if TYPE_CHECKING:
    from collections.abc import Mapping

# A next hop has up to 8 addresses and is called once in a while; a channel that stands costs nothing.
EACH, EACH_S = 128, 4.0  # at once and a second
NETWORK, NETWORK_S = 256, 8.0  # clients behind one address name the same hops, each of which is dialled once
ALL, ALL_S = 1024, 32.0


@dataclass(frozen=True, slots=True)
class Way:
    """Addresses of a peer that somebody of a network named at some time, and those of them that may be dialled."""

    addrs: tuple[str, ...]
    granted: tuple[str, ...]
    since: float
    network: str | None


def one_too_many(ways: Mapping[object, Way], network: str | None) -> tuple[object, bool]:
    """Whose way makes room for one that somebody of `network` names: the newest of the network that has named most,
    and True, if it would still have more without it than this one with another; else the oldest of all, and False."""
    sizes = Counter(way.network for way in ways.values() if way.network is not None)
    for crowd, size in sizes.most_common(1):
        if size > (0 if network is None else sizes[network]) + 1:
            theirs = [whose for whose, way in ways.items() if way.network == crowd]
            return max(theirs, key=lambda whose: ways[whose].since), True
    return min(ways, key=lambda whose: ways[whose].since), False


class DialBudget:
    """What is left. Addresses of this machine and of private networks are free: whoever names them is there, too. The
    name of a machine stands for as many addresses as it may have, and each look-up of it is one more question."""

    def __init__(self) -> None:
        self._each, self._all = Allowance(EACH, EACH_S), Allowance(ALL, ALL_S)

    def grant(self, asker: str, addrs: tuple[str, ...], now: float) -> tuple[str, ...]:
        """As many of the addresses that an asker named as may be dialled now; that they are is noted."""
        return _granted(addrs, now, (self._each, asker), (self._all, ""))


class NetworkDials:
    """What those of one network may still name, together: who has many identities leaves others' addresses some."""

    def __init__(self) -> None:
        self._allowance = Allowance(NETWORK, NETWORK_S)

    def grant(self, network: str | None, addrs: tuple[str, ...], now: float) -> tuple[str, ...]:
        """As `DialBudget.grant`, by the network of who names them; None if it does not count."""
        return addrs if network is None else _granted(addrs, now, (self._allowance, network))


def _granted(addrs: tuple[str, ...], now: float, *of: tuple[Allowance, str]) -> tuple[str, ...]:
    left = min(allowance.left(whose, now) for allowance, whose in of)
    granted, used = [], 0
    for addr in addrs:
        cost = MAX_PLACES_EACH if NAMED.fullmatch(addr) else int(is_far(addr))
        if not cost or used + cost <= left:
            granted.append(addr)
            used += cost
    for allowance, whose in of:
        if used:
            allowance.draw(whose, used, now)
    return tuple(granted)
