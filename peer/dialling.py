"""How many addresses strangers may make this peer dial: each of them, and all together. Pure: told the time."""

from __future__ import annotations

from shoal.dht.allowance import Allowance
from shoal.dht.named import is_far

# A next hop has up to 8 addresses and is called once in a while; a channel that stands costs nothing.
EACH, EACH_S = 128, 4.0  # at once and a second
ALL, ALL_S = 1024, 32.0


class DialBudget:
    """What is left. Addresses of this machine and of private networks are free: whoever names them is there, too."""

    def __init__(self) -> None:
        self._each, self._all = Allowance(EACH, EACH_S), Allowance(ALL, ALL_S)

    def grant(self, asker: str, addrs: tuple[str, ...], now: float) -> tuple[str, ...]:
        """As many of the addresses that an asker named as may be dialled now; that they are is noted."""
        left = min(self._each.left(asker, now), self._all.left("", now))
        granted, used = [], 0
        for addr in addrs:
            if not is_far(addr):
                granted.append(addr)
            elif used < left:
                granted.append(addr)
                used += 1
        if used:
            self._each.draw(asker, used, now)
            self._all.draw("", used, now)
        return tuple(granted)
