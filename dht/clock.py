"""The swarm's time, as the nodes that we joined through tell it: a wrong clock stops nobody. Pure: told every reading.

Expiry and sequence numbers are in swarm time. hivemind refuses a join when clocks differ by over 3 s; here the
difference is measured and carried instead.
"""

from __future__ import annotations

from collections import OrderedDict
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

TOLERANCE_S = 3.0  # smaller differences are network delay and honest drift: our own clock stands
MAX_SAMPLES = 32
FEW = 3


class SwarmClock:
    """Swarm time from a steady clock and what others say.

    wall: this machine's unix time at the steady reading `steady`; later changes of the machine's clock have no effect.
    guides: the nodes of the invite. Theirs is the time that counts; where none of them has answered, that of at least
    `FEW` others does. Who has no guides, such as a swarm's first node, goes by its own: anybody can be an other.
    """

    def __init__(self, wall: float, steady: float, guides: Iterable[str]) -> None:
        self._own_base, self._guides = wall - steady, frozenset(guides)
        self._bases: OrderedDict[str, float] = OrderedDict()

    def observe(self, peer_id: str, wall: float, steady: float) -> None:
        """A peer said `wall` when the steady clock read `steady`; its latest word counts, absurd ones do not."""
        if not 0 < wall < 1e11:  # also refuses NaN
            return
        self._bases[peer_id] = wall - steady
        self._bases.move_to_end(peer_id)
        if len(self._bases) > MAX_SAMPLES:
            del self._bases[next((name for name in self._bases if name not in self._guides), peer_id)]

    @property
    def offset_s(self) -> float:
        """Swarm time less this machine's: the median of what others said, 0 while that is within 3 s."""
        bases = [base for name, base in self._bases.items() if name in self._guides]
        if not bases and self._guides and len(self._bases) >= FEW:
            bases = [*self._bases.values()]
        if not bases:
            return 0.0
        offset = median(bases) - self._own_base
        return offset if abs(offset) > TOLERANCE_S else 0.0

    def now(self, steady: float) -> float:
        """Swarm time, in unix seconds, at a steady reading."""
        return self._own_base + self.offset_s + steady
