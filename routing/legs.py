"""Owns how long a message is on its way between two nodes: seconds one way and seconds a byte. Knows no request.

What is measured wins over what is announced; an announced figure counts at most CLAIM_GAIN times better than what is
known otherwise. A way that its sender says is slow counts as that slow: nobody gains by saying so. A pair that cannot
talk directly costs the leg to the client and the one from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from shoal.routing.bounds import CLAIM_GAIN, LEG_S, RTT_S
from shoal.routing.columns import byte_s

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from shoal.routing.columns import Columns
    from shoal.routing.knowledge import Knowledge


@dataclass(frozen=True, slots=True)
class Legs:
    """`latency_s`: seconds one way of an empty message; `byte_s`: seconds that each byte adds. Arrays of one shape:
    [from, to] between peers (infinitely far from one to itself), or [P] between every peer and one fixed end."""

    latency_s: NDArray[np.float64]
    byte_s: NDArray[np.float64]

    def at(self, chosen: NDArray[np.int64]) -> Legs:
        """Return the legs of the peers at the places `chosen` of [P]."""
        return Legs(self.latency_s[chosen], self.byte_s[chosen])


def leg_s(columns: Columns, knowledge: Knowledge, source: str, target: str) -> float:
    """Return the seconds one way between two peers: measured, else announced, else the default.

    Two peers are as far apart as the farther of their two claims; a claim that only one of them makes cannot bring
    them nearer than the default leg by more than CLAIM_GAIN.
    """
    if (source, target) in knowledge.via_client:
        return client_leg_s(knowledge, source) + client_leg_s(knowledge, target)
    measured = knowledge.legs_s.get((source, target), knowledge.legs_s.get((target, source)))
    if measured is not None and measured > 0.0:
        return LEG_S.clamp(measured)
    claims = [
        RTT_S.clamp(rtt_s) / 2
        for here, there in ((source, target), (target, source))
        if (row := columns.index.get(here)) is not None and (rtt_s := columns.rtts_s[row].get(there)) is not None
    ]
    default_s = LEG_S.clamp(knowledge.default_leg_s)
    if len(claims) == 1:
        return max(claims[0], default_s / CLAIM_GAIN)
    return max(claims, default=default_s)


def client_leg_s(knowledge: Knowledge, peer_id: str) -> float:
    """Return the seconds one way between this node and a peer."""
    rtt_s = knowledge.rtts_s.get(peer_id, 0.0)
    return LEG_S.clamp(rtt_s / 2 if 0.0 < rtt_s < np.inf else knowledge.default_leg_s)


def believed_byte_s(columns: Columns) -> NDArray[np.float64]:
    """Return the seconds a byte that each peer is believed to need for sending."""
    online = columns.byte_s[columns.online]
    if not online.size:
        return columns.byte_s
    middle = online.size // 2
    believed: NDArray[np.float64] = np.maximum(columns.byte_s, np.partition(online, middle)[middle] / CLAIM_GAIN)
    return believed


def sent_s(columns: Columns, source: str, target: str, believed: float) -> float:
    """Return the seconds a byte from one peer to another; `believed`: what the first one needs in general."""
    rate = columns.rates[columns.index[source]].get(target) if source in columns.index else None
    return believed if rate is None else max(believed, byte_s(rate))


def client_byte_s(knowledge: Knowledge, peer_id: str) -> float:
    """Return the seconds that a byte takes from this node to a peer."""
    return byte_s(knowledge.rates.get(peer_id, knowledge.upload_bps))


def between(columns: Columns, knowledge: Knowledge, rows: NDArray[np.int64]) -> Legs:
    """Return the legs [from, to] between the peers `rows`."""
    ids = [columns.ids[row] for row in rows]
    place = {peer_id: i for i, peer_id in enumerate(ids)}
    default_s = LEG_S.clamp(knowledge.default_leg_s)
    said = _claims(columns, rows, place)
    both = np.maximum(said, said.T)  # not a number where one of them is silent
    one = np.maximum(np.fmax(said, said.T), default_s / CLAIM_GAIN)
    latency_s = np.where(np.isnan(both), np.where(np.isnan(one), default_s, one), both)
    bytes_s = np.repeat(believed_byte_s(columns)[rows][:, None], rows.size, axis=1)
    for here in ids:
        for there in columns.rates[columns.index[here]]:
            if there in place:
                at = place[here], place[there]
                bytes_s[at] = sent_s(columns, here, there, bytes_s[at])
    for here, there in knowledge.legs_s:
        i, j = place.get(here), place.get(there)
        if i is not None and j is not None:
            latency_s[i, j] = leg_s(columns, knowledge, here, there)
            latency_s[j, i] = leg_s(columns, knowledge, there, here)
    for here, there in knowledge.via_client:
        i, j = place.get(here), place.get(there)
        if i is not None and j is not None:
            latency_s[i, j] = leg_s(columns, knowledge, here, there)
            bytes_s[i, j] += client_byte_s(knowledge, there)
    np.fill_diagonal(latency_s, np.inf)
    return Legs(latency_s, bytes_s)


def _claims(columns: Columns, rows: NDArray[np.int64], place: dict[str, int]) -> NDArray[np.float64]:
    """[from, to] seconds one way as announced by `from`, not a number where it says nothing."""
    said = np.full((rows.size, rows.size), np.nan)
    found = [
        (i, j, RTT_S.clamp(rtt_s) / 2)
        for i, row in enumerate(rows)
        for there, rtt_s in columns.rtts_s[row].items()
        if (j := place.get(there)) is not None
    ]
    if found:
        source, target, seconds = zip(*found, strict=True)
        said[source, target] = seconds
    return said


def legs_in(columns: Columns, knowledge: Knowledge, neighbour: str | None) -> Legs:
    """Return the legs [P] to every peer from what stands before the route: a peer, or None for the client."""
    latency_s = _end_legs(columns, knowledge, neighbour, after=False)
    if neighbour is None:
        bytes_s = np.full(len(columns.ids), byte_s(knowledge.upload_bps))
        for row in rows_of(columns, knowledge.rates):
            bytes_s[row] = client_byte_s(knowledge, columns.ids[row])
        return Legs(latency_s, bytes_s)
    own = columns.index.get(neighbour)
    bytes_s = np.full(len(columns.ids), byte_s(0.0) if own is None else believed_byte_s(columns)[own])
    for row in rows_of(columns, () if own is None else columns.rates[own]):
        bytes_s[row] = sent_s(columns, neighbour, columns.ids[row], bytes_s[row])
    for row in rows_of(columns, (there for here, there in knowledge.via_client if here == neighbour)):
        bytes_s[row] += client_byte_s(knowledge, columns.ids[row])
    return Legs(latency_s, bytes_s)


def legs_out(columns: Columns, knowledge: Knowledge, neighbour: str | None) -> Legs:
    """Return the legs [P] from every peer to what stands after the route: a peer, or None for the client."""
    bytes_s = believed_byte_s(columns).copy()
    if neighbour is not None:
        for row in (i for i, rates in enumerate(columns.rates) if neighbour in rates):
            bytes_s[row] = sent_s(columns, columns.ids[row], neighbour, bytes_s[row])
        through = (here for here, there in knowledge.via_client if there == neighbour)
        bytes_s[rows_of(columns, through)] += client_byte_s(knowledge, neighbour)
    return Legs(_end_legs(columns, knowledge, neighbour, after=True), bytes_s)


def _end_legs(columns: Columns, knowledge: Knowledge, neighbour: str | None, *, after: bool) -> NDArray[np.float64]:
    legs = np.full(len(columns.ids), LEG_S.clamp(knowledge.default_leg_s))
    if neighbour is None:
        for row in rows_of(columns, knowledge.rtts_s):
            legs[row] = client_leg_s(knowledge, columns.ids[row])
        return legs
    pairs = (*knowledge.legs_s, *knowledge.via_client)
    named = {peer_id for pair in pairs if neighbour in pair for peer_id in pair}
    named.update(peer_id for peer_id, rtts in zip(columns.ids, columns.rtts_s, strict=True) if neighbour in rtts)
    if (own := columns.index.get(neighbour)) is not None:
        named.update(columns.rtts_s[own])
    for row in rows_of(columns, named):
        ends = (columns.ids[row], neighbour) if after else (neighbour, columns.ids[row])
        legs[row] = leg_s(columns, knowledge, *ends)
    return legs


def rows_of(columns: Columns, peer_ids: Iterable[str]) -> list[int]:
    """Return the rows of those of `peer_ids` that are in the view."""
    return [columns.index[peer_id] for peer_id in peer_ids if peer_id in columns.index]
