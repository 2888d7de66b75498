"""The swarm's time, as the nodes that we joined through tell it: a wrong clock stops nobody. Pure: told every reading.

Expiry and sequence numbers are in swarm time. hivemind refuses a join when clocks differ by over 3 s; here the
difference is measured and carried instead.
"""

from __future__ import annotations

from collections import OrderedDict
from statistics import median

TOLERANCE_S = 3.0  # smaller differences are network delay and honest drift: our own clock stands
MAX_SAMPLES = 32


class SwarmClock:
    """Swarm time from a steady clock and what others say.

    wall: this machine's unix time at the steady reading `steady`; later changes of the machine's clock have no effect.
    """

    def __init__(self, wall: float, steady: float) -> None:
        self._own_base = wall - steady
        self._bases: OrderedDict[str, float] = OrderedDict()

    def observe(self, peer_id: str, wall: float, steady: float) -> None:
        """A peer said `wall` when the steady clock read `steady`; its latest word counts, absurd ones do not."""
        if not 0 < wall < 1e11:  # also refuses NaN
            return
        self._bases[peer_id] = wall - steady
        self._bases.move_to_end(peer_id)
        if len(self._bases) > MAX_SAMPLES:
            self._bases.popitem(last=False)

    @property
    def offset_s(self) -> float:
        """Swarm time less this machine's: the median of what others said, 0 while that is within 3 s."""
        if not self._bases:
            return 0.0
        offset = median(self._bases.values()) - self._own_base
        return offset if abs(offset) > TOLERANCE_S else 0.0

    def now(self, steady: float) -> float:
        """Swarm time, in unix seconds, at a steady reading."""
        return self._own_base + self.offset_s + steady
