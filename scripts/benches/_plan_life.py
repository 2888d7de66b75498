"""Hours of a swarm's life in virtual time: machines join, leave, load and move by one set of rules or the other."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import TYPE_CHECKING, Protocol

import _plan_petals as petals
from _plan_flow import bound, carried, over_routes, together
from _plan_swarm import NOW, Machine, announcement, machines, nearest, rtt_s
from shoal.routing.cost import HOP_OVERHEAD_S
from shoal.routing.knowledge import Knowledge, Speed, middle_leg_s
from shoal.routing.placement import place_span
from shoal.routing.planner import NoRoute, RouteRequest, plan_route
from shoal.routing.rebalance import Move, Stake, rebalance
from shoal.routing.survey import worth_measuring
from shoal.routing.view import View

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.routing.announcement import Announcement

LOAD_BLOCK_S = 10.0  # fetching and loading one block
LOOKED_AT_S = 300.0  # between samples of what the swarm can carry
TOKEN_BYTES = 16_384


class Rules(Protocol):
    """Who goes where, and over whom a client's tokens go."""

    check_s: float

    def place(self, swarm: Swarm, me: Machine) -> range:
        """Blocks for a machine that joins."""
        ...

    def move(self, swarm: Swarm, me: Machine) -> range | None:
        """Blocks to go to, at one of its checks."""
        ...

    def route(self, swarm: Swarm, client: Machine, queues: dict[str, int]) -> list[tuple[str, int, int]]:
        """(peer, first block, end) for a client; `queues`: sessions in service so far."""
        ...


@dataclass
class Swarm:
    """What everybody can look up. `loading`: machines that do not serve yet."""

    n_blocks: int
    rng: random.Random
    machines: dict[str, Machine] = field(default_factory=dict)
    spans: dict[str, range] = field(default_factory=dict)
    loading: set[str] = field(default_factory=set)
    rtts: dict[str, tuple[tuple[str, float], ...]] = field(default_factory=dict)

    def serving(self) -> dict[str, range]:
        """The spans of those that serve."""
        return {peer_id: span for peer_id, span in self.spans.items() if peer_id not in self.loading}

    def view(self, queues: dict[str, int] | None = None) -> View:
        """As a directory would show it."""
        return View(self.n_blocks, tuple(self.announced(i, queues or {}) for i in sorted(self.spans)), NOW)

    def announced(self, peer_id: str, queues: dict[str, int]) -> Announcement:
        """One machine's announcement."""
        state = "joining" if peer_id in self.loading else "online"
        rtts, queue = self.rtts[peer_id], queues.get(peer_id, 0)
        return announcement(self.machines[peer_id], self.spans[peer_id], state, NOW, rtts, queue)

    def enter(self, me: Machine, span: range) -> None:
        """A machine has chosen its blocks."""
        self.rtts[me.peer_id] = self.rtts.get(me.peer_id) or nearest(me, list(self.machines.values()))
        self.machines[me.peer_id], self.spans[me.peer_id] = me, span

    def drop(self, peer_id: str) -> None:
        """A machine is gone."""
        del self.machines[peer_id], self.spans[peer_id], self.rtts[peer_id]
        self.loading.discard(peer_id)


class Ours:
    """`shoal.routing`, as peers and clients call it."""

    check_s = 600.0

    def place(self, swarm: Swarm, me: Machine) -> range:
        """See `place_span`."""
        view = swarm.view()
        placed = place_span(view, me.capacity, _speed(me), NOW, swarm.rng, self._knows(swarm, view, me))
        return range(placed.start, placed.stop)

    def move(self, swarm: Swarm, me: Machine) -> range | None:
        """See `rebalance`."""
        stake, view = Stake(LOAD_BLOCK_S * len(swarm.spans[me.peer_id]), 1), swarm.view()
        knowledge = self._knows(swarm, view.without(me.peer_id), me)
        found = rebalance(view, swarm.announced(me.peer_id, {}), _speed(me), stake, swarm.rng, knowledge)
        return range(found.start, found.stop) if isinstance(found, Move) else None

    def _knows(self, swarm: Swarm, view: View, me: Machine) -> Knowledge:
        """What a peer has measured that looks for a place."""
        rtts = {peer.peer_id: rtt_s(me, swarm.machines[peer.peer_id]) for peer in worth_measuring(view, swarm.rng)}
        return Knowledge(rtts_s=rtts, default_leg_s=middle_leg_s(rtts))

    def route(self, swarm: Swarm, client: Machine, queues: dict[str, int]) -> list[tuple[str, int, int]]:
        """See `plan_route`."""
        rtts = {peer_id: rtt_s(client, swarm.machines[peer_id]) for peer_id in swarm.spans}
        request = RouteRequest(0, swarm.n_blocks, knowledge=Knowledge(rtts_s=rtts), token_bytes=TOKEN_BYTES)
        found = plan_route(swarm.view(queues), request, NOW, swarm.rng)
        return [] if isinstance(found, NoRoute) else [(hop.peer_id, hop.start, hop.stop) for hop in found.hops]


class Petals:
    """The published rules, see `_plan_petals`."""

    check_s = petals.CHECK_S

    def place(self, swarm: Swarm, me: Machine) -> range:
        """The interval whose blocks are worst off."""
        length = min(me.capacity, swarm.n_blocks)
        start = petals.best_start(petals.throughputs_of(swarm.spans, _rates(swarm), swarm.n_blocks), length)
        return range(start, start + length)

    def move(self, swarm: Swarm, me: Machine) -> range | None:
        """If balance is under three quarters of what it could be."""
        start = petals.wants_to_move(me.peer_id, swarm.spans, _rates(swarm), swarm.n_blocks, swarm.rng)
        return None if start is None else range(start, start + len(swarm.spans[me.peer_id]))

    def route(self, swarm: Swarm, client: Machine, queues: dict[str, int]) -> list[tuple[str, int, int]]:  # noqa: ARG002
        """The shortest path; pairs that announce no round trip count as the average of those that do."""
        spans = swarm.serving()
        known = {(i, j): seconds for i, rtts in swarm.rtts.items() for j, seconds in rtts}
        average = sum(known.values()) / max(1, len(known))
        block_s = {peer_id: swarm.machines[peer_id].decode_s for peer_id in spans}
        home_s = {peer_id: rtt_s(client, swarm.machines[peer_id]) / 2 for peer_id in spans}
        if any(not any(block in span for span in spans.values()) for block in range(swarm.n_blocks)):
            return []
        return petals.route(spans, block_s, home_s, lambda i, j: known.get((i, j), average) / 2, swarm.n_blocks)


def _speed(me: Machine) -> Speed:
    return Speed(me.decode_s, me.decode_s / 20)


def _rates(swarm: Swarm) -> dict[str, float]:
    return {i: 1.0 / (swarm.machines[i].decode_s * len(span)) for i, span in swarm.spans.items()}


@dataclass(frozen=True, slots=True)
class Seen:
    """One look: tokens/s that the placement carries, the bound of these machines, whether all blocks were served; and
    of as many sessions as machines, all at once, what their routes carry, the tokens/s in all and the mean seconds a
    token."""

    carried: float
    bound: float
    served: float
    routed: float
    tokens_per_s: float
    token_s: float


@dataclass
class Life:
    """The same machines come and go for every set of rules: `seed` decides them."""

    rules: Rules
    n_blocks: int
    peers: int
    hours: float
    hourly: float
    seed: int
    moves: int = 0

    def run(self, tell: Callable[[str], None]) -> list[Seen]:
        """What was seen, look after look."""
        coming = random.Random(self.seed)
        swarm = Swarm(self.n_blocks, random.Random(self.seed + 1))
        order, due = count(), list[tuple[float, int, str, str]]()

        def at(when: float, what: str, peer_id: str = "") -> None:
            heapq.heappush(due, (when, next(order), what, peer_id))

        end, per_s, born = 3600.0 * self.hours, self.hourly / 3600.0, self.peers
        arrivals = machines(coming, self.peers + int(2 * self.peers * self.hourly * self.hours) + 8)
        for me in arrivals[: self.peers]:
            swarm.enter(me, self.rules.place(swarm, me))
            at(coming.expovariate(per_s), "leave", me.peer_id)
            at(coming.uniform(0, self.rules.check_s), "check", me.peer_id)
        at(coming.expovariate(per_s * self.peers), "join")
        at(LOOKED_AT_S, "look")
        seen: list[Seen] = []
        while due and due[0][0] < end:
            now, _, what, peer_id = heapq.heappop(due)
            if what == "look":
                seen.append(self._look(swarm))
                tell(f"{type(self.rules).__name__}: {now / 3600:.1f} of {self.hours:g} h, {len(swarm.spans)} machines")
                at(now + LOOKED_AT_S, "look")
            elif what == "join":
                me, born = arrivals[born], born + 1
                swarm.enter(me, self.rules.place(swarm, me))
                self._load(swarm, me.peer_id, now, at)
                at(now + coming.expovariate(per_s), "leave", me.peer_id)
                at(now + coming.uniform(0, self.rules.check_s), "check", me.peer_id)
                at(now + coming.expovariate(per_s * self.peers), "join")
            elif peer_id in swarm.spans:
                self._own(swarm, peer_id, what, now, at)
        return seen

    def _own(self, swarm: Swarm, peer_id: str, what: str, now: float, at: Callable[..., None]) -> None:
        """What happens to one machine that is there."""
        if what == "leave":
            swarm.drop(peer_id)
        elif what == "loaded":
            swarm.loading.discard(peer_id)
        elif what == "check":
            at(now + swarm.rng.uniform(0.5, 1.5) * self.rules.check_s, "check", peer_id)
            if peer_id not in swarm.loading:
                me = swarm.machines[peer_id]
                span = self.rules.move(swarm, me)
                if span is not None:
                    self.moves += 1
                    swarm.enter(me, span)
                    self._load(swarm, peer_id, now, at)

    @staticmethod
    def _load(swarm: Swarm, peer_id: str, now: float, at: Callable[..., None]) -> None:
        swarm.loading.add(peer_id)
        at(now + LOAD_BLOCK_S * len(swarm.spans[peer_id]), "loaded", peer_id)

    def _look(self, swarm: Swarm) -> Seen:
        spans = swarm.serving()
        flow = carried(list(spans.values()), [1 / swarm.machines[i].decode_s for i in spans], self.n_blocks)
        able = list(swarm.machines.values())
        most = bound([me.capacity for me in able], [1 / me.decode_s for me in able], self.n_blocks)
        if flow <= 0:
            return Seen(flow, most, 0.0, 0.0, 0.0, 0.0)
        legs_s, services_s = self._sessions(swarm)
        rates = together(legs_s, services_s)
        token_s = sum(1 / rate for rate in rates) / len(rates)
        return Seen(flow, most, 1.0, over_routes(services_s), sum(rates), token_s)

    def _sessions(self, swarm: Swarm) -> tuple[list[float], list[dict[str, float]]]:
        """Of as many sessions as there are machines, the seconds of each on its legs and in each peer of its route;
        each client sees the queues that those before it made."""
        chance = random.Random(len(swarm.spans))
        queues: dict[str, int] = {}
        legs_s, services_s = [], []
        for client in machines(chance, len(swarm.spans), 10_000_000):
            route = self.rules.route(swarm, client, queues)
            stops = [swarm.machines[peer_id] for peer_id, _, _ in route]
            inner = sum(rtt_s(a, b) for a, b in pairwise(stops))
            legs_s.append(
                (rtt_s(client, stops[0]) + inner + rtt_s(stops[-1], client)) / 2 + HOP_OVERHEAD_S * len(stops)
            )
            service: dict[str, float] = {}
            for (peer_id, start, stop), machine in zip(route, stops, strict=True):
                service[peer_id] = service.get(peer_id, 0.0) + machine.decode_s * (stop - start)
            for peer_id in service:
                queues[peer_id] = queues.get(peer_id, 0) + 1
            services_s.append(service)
        return legs_s, services_s
