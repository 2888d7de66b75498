"""Planning: milliseconds of decisions in a big swarm; hours of joins and leaves against max flow and Petals' rules."""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from _plan_life import NOW, TOKEN_BYTES, Life, Ours, Petals, Seen
from _plan_swarm import announcement, machines, rtt_s
from _report import print_table, write_json
from shoal.routing.knowledge import Knowledge, Speed
from shoal.routing.placement import place_span
from shoal.routing.planner import Route, RouteRequest, plan_route
from shoal.routing.view import View, fold

if TYPE_CHECKING:
    from collections.abc import Callable

    from _plan_swarm import Machine

CLIENT_KNOWS = 300  # peers whose distance the client has measured
GOALS = {"route_ms": "<= 20", "placement_ms": "<= 200", "of_max_flow": ">= 0.90", "over_petals_rules": ">= 1.2"}
LEAST_RUNS = 5
NEWS_EVERY = 50  # one of so many peers has announced something new between two looks


def big_view(blocks: int, peers: int) -> tuple[View, list[Machine]]:
    """`peers` machines at random places of the model, each knowing its way to twelve others."""
    rng = random.Random(1)
    everyone = machines(rng, peers)
    announced = []
    for me in everyone:
        length = min(me.capacity, blocks)
        start = rng.randint(0, blocks - length)
        rtts = tuple((other.peer_id, rtt_s(me, other)) for other in rng.sample(everyone, min(12, peers)))
        announced.append(announcement(me, range(start, start + length), "online", NOW, rtts, rng.randrange(4)))
    return View(blocks, tuple(sorted(announced, key=lambda peer: peer.peer_id)), NOW), everyone


def timed(seconds: float, act: Callable[[int], object]) -> list[float]:
    """Milliseconds of each run, for at least LEAST_RUNS and `seconds`, the first one left out."""
    act(0)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST_RUNS or time.perf_counter() < end:
        begun = time.perf_counter()
        act(len(times))
        times.append(1e3 * (time.perf_counter() - begun))
    return times


def speed(blocks: int, peers: int, seconds: float) -> dict[str, float]:
    """How long decisions take in a swarm of `peers`; `route_ms` is the slower one of chat's and a prompt's routes."""
    view, everyone = big_view(blocks, peers)
    columns = timed(seconds, lambda _: View(blocks, view.peers, NOW).columns)
    news = [replace(peer, sequence=2, queue=1 + run % 3) for run, peer in enumerate(view.peers[::NEWS_EVERY])]
    fresh, former = fold(view, news, NOW).peers, view.columns
    again = timed(seconds, lambda _: View(blocks, fresh, NOW, former).columns)
    client = machines(random.Random(2), 1, 90_000_000)[0]
    known = {other.peer_id: rtt_s(client, other) for other in everyone[:CLIENT_KNOWS]}
    knowledge = Knowledge(rtts_s=known)
    work = {"decode": (0, 100), "chat": (500, 200), "prompt": (8000, 1)}
    found: dict[str, float] = {}
    for name, (prompt, new) in work.items():
        request = RouteRequest(0, blocks, prompt, new, prompt + new, knowledge=knowledge, token_bytes=TOKEN_BYTES)
        times = timed(seconds, lambda run, request=request: _must(plan_route(view, request, NOW, random.Random(run))))
        found[f"route_{name}_ms"] = median(times)
        found[f"route_{name}_worst_ms"] = max(times)
    prompt, new = work["chat"]
    chat = RouteRequest(0, blocks, prompt, new, prompt + new, knowledge=knowledge, token_bytes=TOKEN_BYTES)
    first = timed(
        seconds, lambda run: _must(plan_route(View(blocks, fresh, NOW, former), chat, NOW, random.Random(run)))
    )
    me = Speed(0.001, 0.0001)
    places = timed(seconds, lambda run: place_span(view, 12, me, NOW, random.Random(run), knowledge))
    slowest = max(found[f"route_{name}_ms"] for name in work)
    return {
        "route_ms": slowest, "placement_ms": median(places), **found, "columns_ms": median(columns),
        "columns_again_ms": median(again), "route_after_refresh_ms": median(first),
    }  # fmt: skip


def _must(found: object) -> None:
    if not isinstance(found, Route):
        raise TypeError(f"no route: {found}")


def life(blocks: int, peers: int, hours: float, hourly: float) -> dict[str, float]:
    """Both sets of rules over the same hours with the same machines."""
    ours, theirs = Life(Ours(), blocks, peers, hours, hourly, 7), Life(Petals(), blocks, peers, hours, hourly, 7)
    mine, other = ours.run(tell), theirs.run(tell)
    rate = mean(mine, "tokens_per_s") / mean(other, "tokens_per_s")
    pace = served_s(other) / served_s(mine)
    return {
        "of_max_flow": sum(seen.carried / seen.bound for seen in mine) / len(mine),
        "of_max_flow_least": min(seen.carried / seen.bound for seen in mine),
        "routes_of_max_flow": routed(mine),
        "petals_routes_of_max_flow": routed(other),
        "petals_of_max_flow": sum(seen.carried / seen.bound for seen in other) / len(other),
        "over_petals_rules": max(rate, pace),
        "over_petals_tokens_per_s": rate,
        "over_petals_token_time": pace,
        "tokens_per_s": mean(mine, "tokens_per_s"),
        "petals_tokens_per_s": mean(other, "tokens_per_s"),
        "token_ms": 1e3 * served_s(mine),
        "petals_token_ms": 1e3 * served_s(other),
        "covered": mean(mine, "served"),
        "petals_covered": mean(other, "served"),
        "moves": ours.moves,
        "petals_moves": theirs.moves,
    }


def mean(looks: list[Seen], name: str) -> float:
    """Over all looks; while a block has no holder nothing is carried."""
    return sum(getattr(seen, name) for seen in looks) / len(looks)


def routed(looks: list[Seen]) -> float:
    """What the routes carry over what the same placement could, of the looks at which it could at all."""
    served = [seen for seen in looks if seen.served]
    return sum(seen.routed / seen.carried for seen in served) / max(1, len(served))


def served_s(looks: list[Seen]) -> float:
    """Mean seconds a token, of the looks at which tokens came."""
    times = [seen.token_s for seen in looks if seen.served]
    return sum(times) / max(1, len(times))


def median(times: list[float]) -> float:
    """The middle one."""
    return sorted(times)[len(times) // 2]


def tell(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Measure, simulate, print, write."""
    parser = argparse.ArgumentParser(prog="scripts/bench plan", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="for each kind of decision that is timed (default 3)"
    )
    parser.add_argument("--hours", type=float, default=2.0, help="of virtual time (default 2)")
    parser.add_argument("--machines", type=int, default=100, help="in the simulated swarm (default 100)")
    parser.add_argument(
        "--hourly", type=float, default=0.3, help="share that leaves, and joins, each hour (default 0.3)"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="a small swarm for a quarter of an hour: does it run at all?"
    )
    arguments = parser.parse_args()
    blocks, peers = (12, 300) if arguments.tiny else (80, 10_000)
    hours, some = (0.4, 20) if arguments.tiny else (arguments.hours, arguments.machines)
    tell(f"timing decisions in a swarm of {peers} peers ...")
    figures = speed(blocks, peers, 0.0 if arguments.tiny else arguments.seconds)
    figures |= life(blocks, some, hours, arguments.hourly)
    print_table(["figure", "here", "goal"], [[n, f"{value:.3f}", GOALS.get(n, "")] for n, value in figures.items()])
    print(
        f"""
{peers} peers, {blocks} blocks: medians (and the worst) of single decisions, for a view whose columns are made.
columns_ms: making them, from nothing; columns_again_ms: from those of the view before, one of {NEWS_EVERY} peers having
announced something new; route_after_refresh_ms: that and a chat's route.
{some} machines, {hours:g} h, {arguments.hourly:.0%} an hour leave and as many join, each loading 10 s a block.
of_max_flow: tokens/s that the serving machines carry through all blocks, each splitting its time over its blocks as is
best (max flow, as a linear program), over the same with every machine that is there, loading or not, free to hold any
blocks at any moment: no placement carries more. Means over looks every 5 minutes.
routes_of_max_flow: tokens/s that the routes of as many sessions as machines carry at the rates that are best, over what
the same placement carries by the best routes of all; no peer serves two tokens at once, while clients plan for peers
that do, and for few sessions over the short way.
over_petals_rules: the better one of the two ratios below it. As many sessions as machines at once, each route planned
in turn; ours know the queues that others announce. Same machines, legs and batching for both; their rules as published
(arXiv 2312.08361), see scripts/benches/_plan_petals.py."""
    )
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
