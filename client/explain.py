"""What the time that hops kept tokens says of the ways between nodes and of what peers hide. Pure: data in, data out.

Of the time from the news of the node before a hop to the hop's own news, receipts explain the computing and the
waiting; the rest should be the messages' way. Where it is less, the way is shorter than was thought. Where it is more
whatever node came before, the peer hides it; what only some of the nodes before it see is their distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.routing.bounds import LEG_S, RTT_S
from shoal.routing.legs import client_leg_s, leg_s

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.routing.columns import Columns
    from shoal.routing.knowledge import Knowledge


@dataclass(frozen=True, slots=True)
class Explained:
    """`rtts_s`, `legs_s`: as `Knowledge` has them; `hidden_s`: what each peer takes for a step without saying so."""

    rtts_s: dict[str, float]
    legs_s: dict[tuple[str, str], float]
    hidden_s: dict[str, float]


def explain(columns: Columns, base: Knowledge, beyond_s: Mapping[str, Mapping[str, float]]) -> Explained:
    """Return what `beyond_s`, by peer and by the node before it ("" being the client), tells over and above `base`."""
    rtts_s = dict(base.rtts_s)
    for peer_id, seen in beyond_s.items():
        if peer_id in rtts_s and seen.get("", rtts_s[peer_id]) < rtts_s[peer_id]:
            rtts_s[peer_id] = max(seen[""], RTT_S.best)
    home_s = {peer_id: RTT_S.clamp(rtt_s) / 2 for peer_id, rtt_s in rtts_s.items()}
    found = Explained(rtts_s, {}, {})
    for peer_id, seen in beyond_s.items():
        legs_s = {before: _believed_s(columns, base, before, peer_id, home_s) for before in seen}
        back_s = _home_s(base, peer_id, home_s)
        more_s = {
            before: seen[before] - leg - back_s + (_home_s(base, before, home_s) if before else 0.0)
            for before, leg in legs_s.items()
        }
        hidden_s = found.hidden_s[peer_id] = max(0.0, min(more_s.values(), default=0.0))
        for before, leg in legs_s.items():
            if before:
                found.legs_s[before, peer_id] = max(leg + more_s[before] - hidden_s, LEG_S.best)
    return found


def _believed_s(columns: Columns, base: Knowledge, before: str, peer_id: str, home_s: Mapping[str, float]) -> float:
    return leg_s(columns, base, before, peer_id) if before else _home_s(base, peer_id, home_s)


def _home_s(base: Knowledge, peer_id: str, home_s: Mapping[str, float]) -> float:
    """One way between a peer and the client."""
    return home_s.get(peer_id) or client_leg_s(base, peer_id)
