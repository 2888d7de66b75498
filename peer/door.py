"""Lets leases in: where there is no room, idle ones of others end for them (`giving`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shoal.dht.allowance import Allowance
from shoal.peer.errors import Reason
from shoal.peer.giving import side_of
from shoal.peer.wire import Refused

if TYPE_CHECKING:
    from shoal.peer.book import LeaseBook
    from shoal.peer.lease import Lease
    from shoal.peer.steps import Steps
    from shoal.peer.wire import Open

LOOKS: Final = 64  # for leases that give way, of one network at once, each of which takes up to 3 ms
LOOKS_S: Final = 16.0  # and a second


class Door:
    """Of one peer's book and what its engine runs."""

    def __init__(self, book: LeaseBook, steps: Steps) -> None:
        self._book, self._steps = book, steps
        self._looks = Allowance(LOOKS, LOOKS_S)

    def open(self, request: Open, client: str, link: int, network: str | None, now: float) -> Lease | Refused:
        """A new lease for a client of a network (None: it does not count) that asks over `link`, or why not."""
        answer = self._book.open(request, client, link, network, now)
        if not isinstance(answer, Refused) or answer.reason is not Reason.BUSY:
            return answer
        whose, _ = side_of(client, network)
        if self._looks.left(whose, now) <= 0:
            return answer
        self._looks.draw(whose, 1, now)
        giving = self._book.giving_way(request, client, network, now)
        for idle in giving:
            self._steps.end(idle)
            self._book.gave_way(idle)
        return self._book.open(request, client, link, network, now) if giving else answer
