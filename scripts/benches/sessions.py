"""Decode steps per second in all with 1 to 16 sessions on one peer: what batching across sessions gives."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import torch
from _loop import run
from _report import print_table, write_json
from _swarm import Shape, decode, median, swarm_of, tell
from shoal.client.local import ClientModel, load_model
from shoal.client.options import Model, SessionOptions
from shoal.client.swarm import Swarm, join_swarm

SHAPE = Shape(blocks=8, hidden=512, intermediate=2048, heads=8)
COUNTS = (1, 2, 4, 8, 16)
PETALS = {1: "80", 2: "67", 4: "82", 8: "79"}


async def one(swarm: Swarm, model: ClientModel, steps: int) -> None:
    """One session's decode steps."""
    async with swarm.session(SessionOptions(max_tokens=steps + 16, wait_s=10)) as session:
        await decode(session, model, steps)


async def rate(swarm: Swarm, model: ClientModel, sessions: int, steps: int) -> float:
    """Decode steps a second over all sessions, prompts included in the time."""
    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(sessions):
            tasks.create_task(one(swarm, model, steps))
    return sessions * steps / (time.perf_counter() - started)


async def measure(steps: int, rounds: int) -> dict[str, float]:
    """steps/s for each number of sessions; one peer, one client process. Medians of rounds, and of their ratios:
    what slows the machine for a while slows both rates of one."""
    rates: dict[int, list[float]] = {sessions: [] for sessions in COUNTS}
    with tempfile.TemporaryDirectory() as name:
        folder = SHAPE.save(Path(name) / "model")
        model = load_model(str(folder), "float32")
        info = Model(SHAPE.blocks, SHAPE.hidden, model.checkpoint.revision)
        async with swarm_of(folder, [f"0:{SHAPE.blocks}"]) as invite, join_swarm(invite, info) as swarm:
            await swarm.wait_covered(60)
            await rate(swarm, model, 2, 20)
            for number in range(rounds):
                tell(f"round {number + 1} of {rounds}")
                for sessions in COUNTS:
                    rates[sessions].append(await rate(swarm, model, sessions, steps))
    figures = {f"steps_per_s_{sessions}": median(found) for sessions, found in rates.items()}
    figures["speedup_8"] = median([eight / one for one, eight in zip(rates[1], rates[8], strict=True)])
    return figures


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="scripts/bench sessions", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--steps", type=int, default=150, help="decode steps of each session (default 150)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each number of sessions (default 5)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}

    async def go() -> None:
        figures.update(await measure(arguments.steps, arguments.rounds))

    run(go())
    rows = [[str(n), f"{figures[f'steps_per_s_{n}']:.0f}", PETALS.get(n, "")] for n in COUNTS]
    print_table(["sessions", "steps/s in all", "Petals, as measured for the design"], rows)
    print(f"\n8 sessions against one: {figures['speedup_8']:.2f} times")
    print("8 Llama blocks of hidden 512, fp32, CPU, one peer and one client process, one thread each")
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
