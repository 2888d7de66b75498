"""Milliseconds a token, locally and through 1, 2 and 4 peers: what the swarm adds to a decode step."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from _report import print_table, write_json
from _swarm import Shape, decode, local_ms, median, run, spans, swarm_of, tell
from shoal.client.cli.completion import load_model
from shoal.client.swarm import Model, SessionOptions, join_swarm

SMALL = Shape(blocks=8, hidden=512, intermediate=2048, heads=8)
LARGE = Shape(blocks=16, hidden=1024, intermediate=2816, heads=16)  # 205M parameters in its blocks
PETALS = {"local_ms": 6.6, "peers_1_ms": 14.0, "peers_2_ms": 18.1, "peers_4_ms": 25.6}
PETALS_200M = {"local_200m_ms": 43.0, "swarm_200m_ms": 59.0}


async def through(folder: Path, shape: Shape, peers: int, steps: int) -> float:
    """Median milliseconds a token through that many peers."""
    model = load_model(str(folder), "float32")
    info = Model(shape.blocks, shape.hidden, model.checkpoint.revision)
    async with swarm_of(folder, spans(shape.blocks, peers)) as invite, join_swarm(invite, info) as swarm:
        await swarm.wait_covered(60)
        async with swarm.session(SessionOptions(max_tokens=steps + 16, wait_s=10)) as session:
            return median((await decode(session, model, steps))[steps // 5 :])


async def measure(steps: int, large: bool) -> dict[str, float]:
    """Every figure, local ones before and after the swarm's so that a change of the machine's mood shows."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = SMALL.save(Path(name) / "small")
        before = local_ms(folder, steps)
        for peers in (1, 2, 4):
            tell(f"through {peers} peers ...")
            figures[f"peers_{peers}_ms"] = await through(folder, SMALL, peers, steps)
        after = local_ms(folder, steps)
        figures |= {"local_ms": (before + after) / 2, "local_before_ms": before, "local_after_ms": after}
        figures["fixed_ms"] = figures["peers_1_ms"] - figures["local_ms"]
        figures["per_hop_ms"] = (figures["peers_4_ms"] - figures["peers_1_ms"]) / 3
        if large:
            tell("the 200M model, local and through 2 peers ...")
            folder = LARGE.save(Path(name) / "large")
            figures["local_200m_ms"] = local_ms(folder, steps // 3)
            figures["swarm_200m_ms"] = await through(folder, LARGE, 2, steps // 3)
    return figures


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="scripts/bench hop", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--steps", type=int, default=200, help="decode steps of each run (default 200)")
    parser.add_argument("--small-only", action="store_true", help="leave the 200M model out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}

    async def go() -> None:
        figures.update(await measure(arguments.steps, not arguments.small_only))

    run(go())
    known = PETALS | PETALS_200M
    rows = [[name, f"{value:.2f}", f"{known[name]:.1f}" if name in known else ""] for name, value in figures.items()]
    print_table(["figure (ms)", "here", "Petals, as measured for the design"], rows)
    print("\nLlama blocks, fp32, CPU, one thread a process, medians; fixed_ms = peers_1_ms - local_ms (transformers);")
    print("per_hop_ms = (peers_4_ms - peers_1_ms) / 3")
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
