"""Which idle leases give way to a new one that finds no room. Pure: told the time, and ends nothing.

What a peer has is shared by networks, and what a network has by its clients: identities cost nothing and addresses do.
Leases of a network or client give way only while it has more than a fair share, and only to one that will still have
less than it had: so of two that want everything neither takes it from the other. A client whose network does not count
stands for itself.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from shoal.peer.lease import Lease

Side: TypeAlias = tuple[str, str]  # a network, or a client that stands for itself; and the client

IDLE_S: Final = 10.0  # without steps and messages for so long, a lease may give way
NEWCOMER: Final[Side] = ("anybody", "anybody")  # from a network that has nothing here


def side_of(client: str, network: str | None) -> Side:
    """Whose share it is that a client of a network takes; `network` None if it does not count."""
    return (client if network is None else network), client


class Shares:
    """How much of `total` each side has, seen by the side of a newcomer. `part`: what one lease has of it."""

    def __init__(self, leases: Collection[Lease], part: Callable[[Lease], int], total: int, to: Side) -> None:
        self._leases, self._part, self._to = leases, part, to
        self._crowds: Counter[str] = Counter()
        self._sides: Counter[Side] = Counter()
        for lease in leases:
            self._add(lease.side, part(lease))
        sides = self._sides.keys() | {to}
        self._clients = Counter(crowd for crowd, _ in sides)
        self._fair = total / len(self._clients)

    def giving(self, need: int, lacking: int, now: float) -> list[Lease]:
        """Whose end makes up for what is `lacking` to a lease that needs so much; nobody if that cannot be."""
        given = []
        for lease, lead in self._candidates(now):
            if lacking > 0 and need < lead:
                given.append(lease)
                lacking -= self._part(lease)
                self._add(lease.side, -self._part(lease))
        for lease in given[::-1]:
            if lacking + self._part(lease) <= 0:  # those after it were more than enough
                given.remove(lease)
                lacking += self._part(lease)
        return given if lacking <= 0 else []

    def room(self, free: int, now: float) -> int:
        """The most that the newcomer could get, where so much is `free`."""
        most = free
        for lease, lead in self._candidates(now):
            if lead > 1:
                free += self._part(lease)
                most = max(most, min(free, lead - 1))
                self._add(lease.side, -self._part(lease))
        return most

    def _add(self, side: Side, count: int) -> None:
        self._sides[side] += count
        self._crowds[side[0]] += count

    def _candidates(self, now: float) -> Iterator[tuple[Lease, int]]:
        """Idle leases, longest idle first of the largest client of the largest network, and by how much its side leads
        when its turn comes."""
        idle = [(lease.quiet_s(now), lease) for lease in self._leases]
        idle = [(quiet_s, lease) for quiet_s, lease in idle if quiet_s >= IDLE_S]
        idle.sort(key=lambda each: (-self._crowds[each[1].side[0]], -self._sides[each[1].side], -each[0]))
        for _, lease in idle:
            yield lease, self._lead(lease.side)

    def _lead(self, side: Side) -> int:
        """How much more a side has than the newcomer's; 0 if that is no more than a fair share. Within a network that
        has more, those give way who have as much as its others or more."""
        crowd, own = side[0], self._to[0]
        has, clients = self._crowds[crowd], self._clients[crowd]
        if crowd != own:
            gives = has > self._fair and self._sides[side] * clients >= has
            return has - self._crowds[own] if gives else 0
        gives = self._sides[side] * clients > max(has, self._fair)
        return self._sides[side] - self._sides[self._to] if gives else 0
