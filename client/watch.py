"""How long each hop keeps a lone token, by the client's own clock. Sans-IO: told when a step left and who was heard of.

A hop's time runs from the news of the node before it to its own news: its receipt, or what comes next if it sends none,
so that silence does not pay. Who stands behind a silent hop is not measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.client.actions import SessionStats
    from shoal.routing.route import Hop


class Watch:
    """Follows one step of one token, of `token_bytes`, at a time; what it saw is counted when the next step leaves,
    since receipts may come after the answer."""

    def __init__(self, token_bytes: int) -> None:
        self._token_bytes = token_bytes
        self._step, self._sent_at = -1, 0.0
        self._answered_at: float | None = None
        self._heard: dict[int, tuple[float, float]] = {}  # when each hop was heard of, and seconds it says it took
        self._route: tuple[Hop, ...] = ()

    def sent(self, stats: SessionStats, route: tuple[Hop, ...], step: int, now: float) -> None:
        """A step left over `route`; -1 if it is not of one token or not the only one under way."""
        if self._answered_at is not None and route == self._route:
            self._count(stats, self._answered_at)
        self._step, self._sent_at, self._answered_at, self._route = step, now, None, route
        self._heard = {}

    def heard(self, index: int, step: int, said_s: float, now: float) -> None:
        """A receipt came."""
        if step == self._step:
            self._heard.setdefault(index, (now, said_s))

    def answered(self, step: int, now: float) -> None:
        """The step is done."""
        if step == self._step:
            self._answered_at = now

    def _count(self, stats: SessionStats, answered_at: float) -> None:
        before, since = "", self._sent_at
        known = True
        for index, hop in enumerate(self._route):
            heard = self._heard.get(index)
            if known:
                later = (at for other, (at, _) in self._heard.items() if other > index)
                at, said_s = heard or (min(later, default=answered_at), 0.0)
                stats.keeps(hop.peer_id, before, at - since - said_s, self._token_bytes)
            if heard is not None:
                before, since = hop.peer_id, heard[0]
            known = heard is not None
