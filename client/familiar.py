"""Which hops hold the beginnings of which prompts, as far as this client remembers. Pure: no network, no clock.

It is advice: a hop may have forgotten, and says so when it is asked. What it says helps to choose: a route whose hops
hold most of a prompt may be the sooner one, though another would be faster for all of it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from shoal.peer.wire import PREFIX_TOKENS
from shoal.routing.planner import SPREAD, Route, plan_route
from shoal.routing.view import View

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from shoal.routing.announcement import Announcement
    from shoal.routing.route import Hop, RouteRequest

MAX_GROUPS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Known:
    """Hops that hold the first `tokens` of a prompt."""

    hops: tuple[Hop, ...]
    tokens: int


class Familiar:
    """Remembers the newest `MAX_GROUPS` groups of tokens (`Prefix.groups`), each with the hops that held it last."""

    def __init__(self) -> None:
        self._hops: OrderedDict[bytes, tuple[Hop, ...]] = OrderedDict()

    def note(self, groups: Sequence[bytes], hops: tuple[Hop, ...]) -> None:
        """These hops hold a prompt's groups."""
        for group in groups:
            self._hops[group] = hops
            self._hops.move_to_end(group)
        while len(self._hops) > MAX_GROUPS:
            self._hops.popitem(last=False)

    def find(self, groups: Sequence[bytes]) -> Known | None:
        """Who holds most of a prompt."""
        for count in range(len(groups), 0, -1):
            if (hops := self._hops.get(groups[count - 1])) is not None:
                return Known(hops, count * PREFIX_TOKENS)
        return None


def familiar_route(view: View, request: RouteRequest, known: Known, now: float, rng: Random) -> Route | None:
    """The route over the hops of `known`, at what it costs when they hold their part of the prompt; None if one of them
    is not to be had."""
    there = {peer.peer_id: peer for peer in view.peers}
    peers = [_cut(there.get(hop.peer_id), hop) for hop in known.hops]
    covers = peers and known.hops[0].start <= request.start and known.hops[-1].stop >= request.stop
    if not covers or None in peers:
        return None
    only = View(view.n_blocks, tuple(peer for peer in peers if peer is not None), view.at)
    rest = replace(request, prompt_tokens=max(1, request.prompt_tokens - known.tokens))
    found = plan_route(only, rest, now, rng)
    return found if isinstance(found, Route) and found.hops == known.hops else None


def choose(found: Route, familiar: Route | None, *, awaited: bool) -> Route:
    """The familiar route, unless another is sooner by more than routes that are as good as each other may differ: KV
    that is found spares the peers work.

    A session that has `awaited` its prompt goes where it was run all the same: what that one step waited at each hop
    says little of the next ones, and others that waited would each run the prompt again. It is held to what the other
    route promises for a token, so that hops which stay slower than that are left.
    """
    if familiar is None:
        return found
    if awaited:
        return replace(familiar, token_s=min(familiar.token_s, found.token_s))
    return familiar if familiar.expected_s <= (1 + SPREAD) * found.expected_s else found


def _cut(peer: Announcement | None, hop: Hop) -> Announcement | None:
    """A peer that serves no more than a hop; None if it does not serve it."""
    if peer is None or not peer.start <= hop.start < hop.stop <= peer.stop:
        return None
    return replace(peer, start=hop.start, stop=hop.stop)
