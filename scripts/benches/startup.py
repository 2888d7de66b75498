"""Seconds from pressing Enter: import, --help, and the first token of `shoal generate` from a warm swarm."""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _report import print_table, write_json
from _swarm import PEER
from shoal.client.cli.children import Children

GOALS = {"import_s": 3.0, "import_all_s": None, "help_s": 0.5, "first_token_s": 4.0}
SHOAL = [sys.executable, "-m", "shoal.client.cli.main"]
NAMES = "import shoal.client; [getattr(shoal.client, name) for name in shoal.client.__all__]"
SPANS = ("0:6", "6:12")


def whole_s(argv: list[str]) -> float:
    """Seconds that a command takes."""
    started = time.perf_counter()
    subprocess.run(argv, check=True, capture_output=True)
    return time.perf_counter() - started


def first_byte_s(argv: list[str]) -> float:
    """Seconds until a command writes to stdout."""
    started = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        if process.stdout is None or not os.read(process.stdout.fileno(), 1):
            sys.exit(f"{argv} wrote nothing: {process.communicate()[1].decode()[-500:]}")
        taken = time.perf_counter() - started
        process.communicate()
    return taken


async def measure(runs: int) -> dict[str, float]:
    """Medians over the runs; the swarm is the demo model on two peers."""
    with tempfile.TemporaryDirectory() as folder:
        async with Children({"OMP_NUM_THREADS": "1", "HOME": folder}) as children:
            node = await children.start("bootstrap", ["bootstrap", "--json", "--model", "demo"])
            invite = str((await node.event("invite"))["invite"])
            peers = [await children.start(f"peer {span}", [*PEER, "--join", invite, "--blocks", span])
                     for span in SPANS]  # fmt: skip
            for peer in peers:
                await peer.event("event", "online")
            return await asyncio.to_thread(rounds, runs, invite)


def rounds(runs: int, invite: str) -> dict[str, float]:
    """Everything in turn, and again; the first round, which fills the disk's cache, does not count."""
    generate = [*SHOAL, "generate", "class Config(dict):", "--join", invite, "--max-new-tokens", "8"]
    ways = {
        "import_s": lambda: whole_s([sys.executable, "-c", "import shoal.client"]),
        "import_all_s": lambda: whole_s([sys.executable, "-c", NAMES]),
        "help_s": lambda: whole_s([*SHOAL, "--help"]),
        "first_token_s": lambda: first_byte_s(generate),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(runs + 1):
        print(f"round {number} of {runs}", file=sys.stderr, flush=True)
        for name, way in ways.items():
            times[name].append(way())
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def main() -> None:
    """Measure, print, and say with the exit status whether the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as one flat object")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="medians over N (default 5)")
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments.runs))
    rows = [[name, f"{seconds:.2f}", f"{GOALS[name]:g}" if GOALS[name] else "-"] for name, seconds in figures.items()]
    print_table(["figure", "seconds", "goal"], rows)
    write_json(arguments.json, figures)
    sys.exit(any(goal is not None and figures[name] > goal for name, goal in GOALS.items()))


if __name__ == "__main__":
    main()
