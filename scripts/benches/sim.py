"""Seeded fault schedules in virtual time over the real node, lease, session and planner: exact or a named error."""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import _lean  # noqa: F401
import torch
from _report import print_table, write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.sim.schedule import Schedule, schedule
from tests.sim.trial import Outcome, run_trial, tally
from tests.sim.wide import wide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK = 25  # seeds that a process takes at a time
TELL_S = 5.0


def run_block(seeds: range, *, plan: Callable[[int], Schedule] = schedule) -> list[Outcome]:
    """Outcomes of some seeds; journals only of those that failed."""
    torch.set_num_threads(1)
    outcomes = [run_trial(plan(seed)) for seed in seeds]
    for outcome in outcomes:
        if not outcome.faults:
            outcome.journal.clear()
    return outcomes


def run_all(first: int, count: int, jobs: int, plan: Callable[[int], Schedule]) -> Iterator[list[Outcome]]:
    """Blocks of outcomes, in order of their seeds."""
    run = partial(run_block, plan=plan)
    end = first + count
    blocks = [range(begin, min(begin + BLOCK, end)) for begin in range(first, end, BLOCK)]
    if jobs == 1:
        yield from map(run, blocks)
        return
    gc.freeze()  # what is loaded stays: no collection need look at it, here or in the forks
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        yield from pool.map(run, blocks)


def tell(text: str) -> None:
    """Progress."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def complain(outcome: Outcome, option: str) -> None:
    """What failed, and how to see it again."""
    last = outcome.faults[0].strip().splitlines()[-1]
    sys.stdout.write(f"seed {outcome.seed}: {last}\n    replay: scripts/bench sim{option} --seed {outcome.seed}\n")
    sys.stdout.flush()


def run_many(arguments: argparse.Namespace) -> int:
    """Run the seeds, print and write the figures; 1 if a seed failed."""
    started = told = time.monotonic()
    outcomes: list[Outcome] = []
    for block in run_all(arguments.first, arguments.seeds, arguments.jobs, plan_of(arguments)):
        outcomes += block
        for outcome in block:
            if outcome.faults:
                complain(outcome, " --wide" if arguments.wide else "")
        if time.monotonic() - told >= TELL_S:
            told = time.monotonic()
            rate = len(outcomes) / (told - started)
            tell(f"{len(outcomes)} of {arguments.seeds} schedules, {rate:.0f} a second ...")
    figures: dict[str, float | int | str] = {**tally(outcomes)}
    figures["virtual_s"] = round(sum(outcome.virtual_s for outcome in outcomes), 1)
    figures["schedules_per_s"] = round(len(outcomes) / (time.monotonic() - started), 1)
    figures["digest"] = hashlib.blake2b(
        b"".join(outcome.digest.encode() for outcome in outcomes), digest_size=8
    ).hexdigest()
    print_table(["", "figure"], [[name, str(figure)] for name, figure in figures.items()])
    kinds = Counter(kind for outcome in outcomes for kind in outcome.deeds)
    sys.stdout.write("\nwhat befell: " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())) + "\n")
    failed = [outcome.seed for outcome in outcomes if outcome.faults]
    figures["first_failed_seed"] = failed[0] if failed else -1
    write_json(arguments.json, figures)
    return 1 if failed else 0


def replay(seed: int, arguments: argparse.Namespace) -> int:
    """Print what happened under one seed; 1 if it failed."""
    outcome = run_trial(plan_of(arguments)(seed), messages=arguments.messages)
    sys.stdout.write("\n".join(outcome.journal) + "\n")
    for fault in outcome.faults:
        sys.stdout.write(f"FAILED: {fault}\n")
    sys.stdout.write(
        f"seed {seed}: {', '.join(outcome.jobs)}; {outcome.repairs} repairs in {outcome.virtual_s:.1f} virtual s; "
        f"trace {outcome.digest}\n"
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({**tally([outcome]), "seed": seed, "digest": outcome.digest}) + "\n")
    return 1 if outcome.faults else 0


def plan_of(arguments: argparse.Namespace) -> Callable[[int], Schedule]:
    """What makes a seed's schedule."""
    return wide if arguments.wide else schedule


def main() -> int:
    """Many seeds, or one."""
    parser = argparse.ArgumentParser(prog="scripts/bench sim", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--seeds", type=int, default=1000, help="how many schedules (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default 1)")
    parser.add_argument("--seed", type=int, help="run this one alone and print what happened")
    parser.add_argument("--wide", action="store_true", help="schedules of the larger space: more kinds of faults")
    parser.add_argument("--messages", action="store_true", help="with --seed: every message, too")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.jobs < 1:
        parser.error("--seeds and --jobs must be at least 1")
    torch.set_num_threads(1)
    return run_many(arguments) if arguments.seed is None else replay(arguments.seed, arguments)


if __name__ == "__main__":
    sys.exit(main())
