"""The planner against brute force on small swarms, and what it promises about load, liars and bad news."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_swarms import ABSURD, NOW, peer, peer_ids, swarm, views
from shoal.routing import cost, search, shortlist
from shoal.routing.columns import DEFAULT_UPLOAD_BPS
from shoal.routing.planner import SPREAD, Hop, Knowledge, NoRoute, Route, RouteRequest, Speed, plan_route
from shoal.routing.view import View

SOME_SECONDS = st.sampled_from([0.0002, 0.002, 0.02, 0.2])


@st.composite
def requests(draw, view: View, prompt: bool = False) -> RouteRequest:
    ids = peer_ids(6)
    start = draw(st.sampled_from([0, 0, view.n_blocks // 2]))
    some_ids = st.sampled_from([frozenset()] * 5 + [frozenset({i}) for i in ids])
    knowledge = Knowledge(
        rtts_s=draw(st.dictionaries(st.sampled_from(ids), SOME_SECONDS, max_size=4)),
        legs_s=draw(st.dictionaries(st.tuples(st.sampled_from(ids), st.sampled_from(ids)), SOME_SECONDS, max_size=4)),
        speeds=draw(st.dictionaries(st.sampled_from(ids), st.builds(Speed, SOME_SECONDS, SOME_SECONDS), max_size=3)),
        waits_s=draw(st.dictionaries(st.sampled_from(ids), SOME_SECONDS, max_size=2)),
        banned=draw(some_ids),
        default_leg_s=draw(st.sampled_from([0.0002, 0.0002, 0.025])),
        via_client=draw(st.frozensets(st.tuples(st.sampled_from(ids), st.sampled_from(ids)), max_size=3)),
        upload_bps=draw(st.sampled_from([0.0, 1e6])),
    )
    return RouteRequest(
        start,
        draw(st.sampled_from([view.n_blocks, view.n_blocks, start + 1])),
        prompt_tokens=draw(st.sampled_from([1, 100, 1000])) if prompt else 0,
        new_tokens=draw(st.integers(0, 3)),
        kv_tokens=draw(st.sampled_from([0, 50, 50, 1000])),
        avoid=draw(some_ids),
        knowledge=knowledge,
        upstream=draw(st.sampled_from([None, None, "peer0"])),
        downstream=draw(st.sampled_from([None, None, "peer1"])),
        token_bytes=draw(st.sampled_from([0, 256, 16384])),
    )


def holders(view: View, request: RouteRequest, block: int) -> list[str]:
    """Who may serve a block, from the words of the contract."""
    return [
        p.peer_id
        for p in view.peers
        if p.start <= block < p.stop
        and p.state == "online"
        and p.expiry > NOW
        and p.free_tokens >= request.kv_tokens
        and p.peer_id not in request.avoid | request.knowledge.banned
    ]


def believed_s(view: View, knowledge: Knowledge, peer_id: str, name: str) -> float:
    claims = {p.peer_id: getattr(p, name) for p in view.peers}
    measured = {i: getattr(speed, name) for i, speed in knowledge.speeds.items()}
    best_known = sorted(measured.get(p.peer_id, claims[p.peer_id]) for p in view.peers if p.state == "online")
    return measured.get(peer_id) or max(claims[peer_id], best_known[len(best_known) // 2] * 0.75)


def leg_s(view: View, knowledge: Knowledge, source: str | None, target: str | None) -> float:
    if source is None or target is None:
        rtt_s = knowledge.rtts_s.get(source or target or "")
        return rtt_s / 2 if rtt_s else knowledge.default_leg_s
    if (source, target) in knowledge.via_client:
        return leg_s(view, knowledge, source, None) + leg_s(view, knowledge, None, target)
    for pair in ((source, target), (target, source)):
        if pair in knowledge.legs_s:
            return knowledge.legs_s[pair]
    said = {p.peer_id: dict(p.rtts) for p in view.peers}
    claims = [said[a][b] / 2 for a, b in ((source, target), (target, source)) if b in said.get(a, {})]
    if len(claims) == 1:
        return max(claims[0], knowledge.default_leg_s * 0.75)
    return max(claims, default=knowledge.default_leg_s)


def byte_s(view: View, knowledge: Knowledge, source: str | None, target: str | None) -> float:
    def own_s(there: str | None) -> float:
        return 1 / (knowledge.rates.get(there) or knowledge.upload_bps or DEFAULT_UPLOAD_BPS)

    if source is None:
        return own_s(target)
    said = {p.peer_id: 1 / (p.upload_bps or DEFAULT_UPLOAD_BPS) for p in view.peers}
    online = sorted(said[p.peer_id] for p in view.peers if p.state == "online")
    sent_s = max(said[source], online[len(online) // 2] * 0.75) if source in said else 1 / DEFAULT_UPLOAD_BPS
    slow = {p.peer_id: dict(p.rates) for p in view.peers}.get(source, {}).get(target)
    sent_s = max(sent_s, 1 / slow) if slow else sent_s
    return sent_s + (own_s(target) if (source, target) in knowledge.via_client else 0.0)


def seconds(view: View, request: RouteRequest, hops: tuple[Hop, ...]) -> float:
    """The cost model over again, hop by hop, in plain Python."""
    knowledge = request.knowledge
    peers = {p.peer_id: p for p in view.peers}
    stops = [request.upstream, *(hop.peer_id for hop in hops), request.downstream]
    crossing = sum(leg_s(view, knowledge, a, b) for a, b in pairwise(stops))
    step, stages = 0.0, []
    chunks = math.ceil(request.prompt_tokens / request.chunk_tokens)
    tokens = request.prompt_tokens / chunks if chunks else 0.0
    for hop in hops:
        wait = knowledge.waits_s.get(hop.peer_id)
        load = 1.0 if wait is not None else 1.0 + 0.15 * peers[hop.peer_id].queue
        length = hop.stop - hop.start
        crossing += 0.0005 + (wait or 0.0)
        step += load * length * believed_s(view, knowledge, hop.peer_id, "decode_s")
        stages.append(load * length * tokens * believed_s(view, knowledge, hop.peer_id, "prefill_s"))
    steps = request.new_tokens if request.new_tokens or chunks else 1
    *sends, last = [byte_s(view, knowledge, a, b) for a, b in pairwise(stops)]
    total = steps * (crossing + step + request.token_bytes * (sum(sends) + last))
    stages += [request.token_bytes * tokens * send for send in sends]
    if request.downstream is None:
        crossing += request.token_bytes * last  # of a prompt the client gets one token's states back
    else:
        stages.append(request.token_bytes * tokens * last)
    return total + crossing + sum(stages) + (chunks - 1) * max(stages) if chunks else total


def tilings(view: View, request: RouteRequest, start: int, used: tuple[str, ...] = ()):
    """Every way to tile the rest of the request, no peer twice."""
    if start == request.stop:
        yield ()
        return
    for peer_id in holders(view, request, start):
        stop = start + 1
        while peer_id not in used and stop <= request.stop and peer_id in holders(view, request, stop - 1):
            for rest in tilings(view, request, stop, (*used, peer_id)):
                yield (Hop(peer_id, start, stop), *rest)
            stop += 1


def check_tiles(view: View, request: RouteRequest, route: Route) -> None:
    assert [b for hop in route.hops for b in range(hop.start, hop.stop)] == list(range(request.start, request.stop))
    assert all(hop.peer_id in holders(view, request, b) for hop in route.hops for b in range(hop.start, hop.stop))
    assert len({hop.peer_id for hop in route.hops}) == len(route.hops)
    assert math.isfinite(route.expected_s)
    assert route.expected_s > 0


@settings(max_examples=250, deadline=None)
@given(st.data(), st.integers(0, 2**32), st.booleans())
def test_route_is_near_the_best_of_all_tilings(data, seed, prompt):
    view = data.draw(views())
    request = data.draw(requests(view, prompt))
    found = plan_route(view, request, NOW, random.Random(seed))
    missing = tuple(b for b in range(request.start, request.stop) if not holders(view, request, b))
    if missing:
        assert isinstance(found, NoRoute)
        assert found.missing == missing
        assert found.reason.endswith(".")
        assert str(missing[0]) in found.reason
        return
    assert isinstance(found, Route)
    check_tiles(view, request, found)
    assert found.expected_s == pytest.approx(seconds(view, request, found.hops))
    best = min(seconds(view, request, hops) for hops in tilings(view, request, request.start))
    slack = 1 / search.CAP_FACTOR if request.prompt_tokens > request.chunk_tokens else 1.0
    assert found.expected_s <= best * (1 + SPREAD) * slack * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(0, 2**32))
def test_same_seed_same_route(data, seed):
    view = data.draw(views(max_peers=6, max_blocks=8))
    request = data.draw(requests(view))
    again = View(view.n_blocks, view.peers, view.at)
    assert plan_route(view, request, NOW, random.Random(seed)) == plan_route(again, request, NOW, random.Random(seed))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 2**32))
def test_absurd_figures_never_raise_and_never_leak(data, seed):
    view = data.draw(views(max_peers=6, max_blocks=8, seconds=st.sampled_from([*ABSURD, 0.01])))
    figures = st.dictionaries(st.sampled_from(peer_ids(6)), st.sampled_from(ABSURD))
    knowledge = Knowledge(
        rtts_s=data.draw(figures),
        waits_s=data.draw(figures),
        penalties=data.draw(figures),
        speeds={i: Speed(s, s) for i, s in data.draw(figures).items()},
        default_leg_s=data.draw(st.sampled_from(ABSURD)),
    )
    request = RouteRequest(0, view.n_blocks, prompt_tokens=600, new_tokens=5, knowledge=knowledge)
    found = plan_route(view, request, NOW, random.Random(seed))
    if isinstance(found, Route):
        check_tiles(view, request, found)


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-4, 0.1), st.floats(1.15, 50.0), st.integers(0, 2**32), st.integers(1, 8))
def test_a_peer_measured_to_be_better_is_always_taken(decode_s, times, seed, length):
    view = swarm(length, peer("good", 0, length, decode_s * 2), peer("bad", 0, length, decode_s / 2))
    speeds = {"good": Speed(decode_s, decode_s), "bad": Speed(decode_s * times, decode_s)}
    knowledge = Knowledge(speeds=speeds, rtts_s={"good": 2e-5, "bad": 2e-5})
    found = plan_route(view, RouteRequest(0, length, knowledge=knowledge), NOW, random.Random(seed))
    gain = length * decode_s * (times - 1 - SPREAD) - SPREAD * (cost.HOP_OVERHEAD_S + 1e-5)
    assert isinstance(found, Route)
    assert gain <= 0 or found.hops == (Hop("good", 0, length),)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.0, 0.2), st.floats(1e-5, 0.2), st.integers(0, 2**32))
def test_a_hop_is_added_only_if_it_saves_more_than_its_leg(saved_s, leg_s, seed):
    view = swarm(4, peer("whole", 0, 4), peer("half", 2, 4))
    speeds = {"whole": Speed(0.05 + saved_s, 0.01), "half": Speed(0.05, 0.01)}
    near = {"whole": 1e-4, "half": 1e-4}
    knowledge = Knowledge(speeds=speeds, rtts_s=near, legs_s={("whole", "half"): leg_s})
    found = plan_route(view, RouteRequest(0, 4, knowledge=knowledge), NOW, random.Random(seed))
    assert isinstance(found, Route)
    alone_s, both_s = 4 * (0.05 + saved_s), 2 * (0.05 + saved_s) + 0.1 + leg_s
    if both_s > alone_s * (1 + SPREAD):
        assert len(found.hops) == 1
    if both_s * (1 + SPREAD) + 0.01 < alone_s:
        assert found.hops == (Hop("whole", 0, 2), Hop("half", 2, 4))


@pytest.mark.parametrize("count", [2, 5, 10, 60])
def test_a_hundred_clients_spread_over_equal_peers(count):
    view = swarm(4, *(peer(i, 0, 4) for i in peer_ids(count)))
    routes = [plan_route(view, RouteRequest(0, 4), NOW, random.Random(seed)) for seed in range(100)]
    load = Counter(route.hops[0].peer_id for route in routes)
    fair = 100 / count
    assert max(load.values()) <= fair + 4 * math.sqrt(fair)
    assert len(load) >= min(count, 60) * 0.6


def test_a_busy_peer_is_left_to_its_work():
    view = swarm(4, peer("busy", 0, 4, queue=6), peer("idle", 0, 4))
    routes = [plan_route(view, RouteRequest(0, 4), NOW, random.Random(seed)) for seed in range(50)]
    assert {route.hops[0].peer_id for route in routes} == {"idle"}


@pytest.mark.parametrize("claim_s", [1e-4, 1e-300, 5e-324])
def test_who_claims_a_hundred_times_gains_at_most_a_third(claim_s):
    honest = peer_ids(5)
    view = swarm(4, *(peer(i, 0, 4) for i in honest[1:]), peer("peer0", 0, 4, claim_s))
    taken = Counter()
    for client in range(20):
        rng, measured = random.Random(client), {}
        for _ in range(50):
            request = RouteRequest(0, 4, knowledge=Knowledge(speeds=dict(measured)))
            hop = plan_route(view, request, NOW, rng).hops[0]
            taken[hop.peer_id] += 1
            measured[hop.peer_id] = Speed(0.01, 0.001)
    assert taken["peer0"] <= 1.33 * taken.total() / len(honest)


@pytest.mark.parametrize("lie_s", ABSURD)
def test_an_absurd_claim_promises_no_absurd_route(lie_s):
    view = swarm(4, *(peer(i, 0, 4) for i in peer_ids(4)), peer("liar", 0, 4, lie_s))
    found = plan_route(view, RouteRequest(0, 4), NOW, random.Random(0))
    assert found.expected_s >= 4 * 0.01 * 0.75


def test_one_sided_distance_claims_pull_little():
    view = swarm(4, peer("a", 0, 2), peer("b", 2, 4), peer("liar", 2, 4, rtts=(("a", 1e-9),)))
    found = plan_route(view, RouteRequest(0, 4), NOW, random.Random(1))
    assert found.token_s >= 0.025 * 2 + 0.025 * 0.75 + 4 * 0.01


@pytest.mark.parametrize("seed", range(6))
def test_the_short_list_loses_nothing_that_matters(seed, monkeypatch):
    rng = random.Random(seed)
    ids = peer_ids(200)
    peers = []
    for i in ids:
        start = rng.randrange(20)
        rtts = tuple((rng.choice(ids), rng.uniform(0.001, 0.2)) for _ in range(8))
        fields = {"queue": rng.randrange(5), "rtts": rtts}
        peers.append(peer(i, start, rng.randint(start + 1, 24), rng.uniform(0.0003, 0.02), **fields))
    view = swarm(24, *peers, peer("whole", 0, 24, 0.02))
    near = {i: rng.uniform(0.005, 0.2) for i in ids[:50]}
    request = RouteRequest(0, 24, new_tokens=10, knowledge=Knowledge(rtts_s=near))
    short = plan_route(view, request, NOW, random.Random(seed))
    monkeypatch.setattr(shortlist, "ALL", 10_000)
    whole = plan_route(view, request, NOW, random.Random(seed))
    assert short.expected_s <= whole.expected_s * 1.05


@pytest.mark.parametrize(("count", "dearer"), [(3, 1.1), (4, 1.2), (8, 1.3)])
def test_equal_peers_that_hold_everything_share_a_long_prompt(count, dearer):
    """8,192 tokens through 32 blocks: nearly as soon as if each took its even part."""
    names = peer_ids(count)
    view = swarm(32, *(peer(name, 0, 32, 0.001, prefill_s=0.0003, free_tokens=10**6) for name in names))
    knowledge = Knowledge(rtts_s=dict.fromkeys(names, 0.01), default_leg_s=0.005)
    request = RouteRequest(0, 32, prompt_tokens=8192, new_tokens=128, knowledge=knowledge)
    found = [plan_route(view, request, NOW, random.Random(seed)) for seed in range(5)]
    cuts = [round(32 * number / count) for number in range(count + 1)]
    hops = tuple(Hop(name, start, stop) for name, start, stop in zip(names, cuts, cuts[1:], strict=False))
    assert mean(route.expected_s for route in found) <= dearer * seconds(view, request, hops)
