"""Milliseconds a token, locally and through 1, 2 and 4 peers: what the swarm adds to a decode step."""

from __future__ import annotations

import argparse
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import torch
from _loop import run
from _report import print_table, write_json
from _swarm import LocalModel, Shape, decode, median, spans, swarm_of, tell
from shoal.client.local import ClientModel, load_model
from shoal.client.options import Model, SessionOptions
from shoal.client.swarm import Swarm, join_swarm

SMALL = Shape(blocks=8, hidden=512, intermediate=2048, heads=8)
LARGE = Shape(blocks=16, hidden=1024, intermediate=2816, heads=16)  # 205M parameters in its blocks
PETALS = {"local_ms": 6.6, "peers_1_ms": 14.0, "peers_2_ms": 18.1, "peers_4_ms": 25.6}
PETALS_200M = {"local_200m_ms": 43.0, "swarm_200m_ms": 59.0}


class Rounds:
    """Every way to run a token, in turn and again: the machine's moods then hit all of them alike."""

    def __init__(self, model: ClientModel, local: LocalModel, swarms: dict[str, Swarm]) -> None:
        self._model, self._local, self._swarms = model, local, swarms
        self._medians: dict[str, list[float]] = {}

    async def run(self, rounds: int, steps: int) -> Rounds:
        """Notes each round's median of each way."""
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}")
            self._note("local_ms", self._local.transformers_ms(steps))
            self._note("span_ms", self._local.span_ms(steps))
            for name, swarm in self._swarms.items():
                async with swarm.session(SessionOptions(max_tokens=steps + 16, wait_s=10)) as session:
                    self._note(name, await decode(session, self._model, steps))
        return self

    def of(self, name: str) -> float:
        """The median of a way's rounds."""
        return median(self._medians[name])

    def between(self, name: str, less: str) -> float:
        """How much longer one way takes than another: the median of each round's difference, which what slows the
        machine for a while leaves alone."""
        return median([a - b for a, b in zip(self._medians[name], self._medians[less], strict=True)])

    def _note(self, name: str, times: list[float]) -> None:
        self._medians.setdefault(name, []).append(median(times[len(times) // 5 :]))


async def measure(shape: Shape, peers: tuple[int, ...], rounds: int, steps: int) -> Rounds:
    """Milliseconds a token: `local_ms`, `span_ms` and `peers_N_ms`."""
    with tempfile.TemporaryDirectory() as name:
        folder = shape.save(Path(name) / "model")
        model = load_model(str(folder), "float32")
        info = Model(shape.blocks, shape.hidden, model.checkpoint.revision)
        async with AsyncExitStack() as stack:
            swarms = {}
            for count in peers:
                tell(f"starting {count} peers ...")
                invite = await stack.enter_async_context(swarm_of(folder, spans(shape.blocks, count)))
                swarm = await stack.enter_async_context(join_swarm(invite, info))
                await swarm.wait_covered(60)
                swarms[f"peers_{count}_ms"] = swarm
            return await Rounds(model, LocalModel(folder, model, shape.blocks), swarms).run(rounds, steps)


async def measure_all(arguments: argparse.Namespace) -> dict[str, float]:
    """The small model through 1, 2 and 4 peers, then the large one through 2."""
    small = await measure(SMALL, (1, 2, 4), arguments.rounds, arguments.steps)
    figures = {name: small.of(name) for name in ("local_ms", "span_ms", "peers_1_ms", "peers_2_ms", "peers_4_ms")}
    figures["fixed_ms"] = small.between("peers_1_ms", "span_ms")
    figures["per_hop_ms"] = small.between("peers_4_ms", "peers_1_ms") / 3
    if not arguments.small_only:
        large = await measure(LARGE, (2,), max(2, arguments.rounds // 2), arguments.steps // 2)
        figures["local_200m_ms"], figures["span_200m_ms"] = large.of("local_ms"), large.of("span_ms")
        figures["swarm_200m_ms"] = large.of("peers_2_ms")
    return figures


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="scripts/bench hop", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--steps", type=int, default=60, help="decode steps of each turn (default 60)")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each way (default 15)")
    parser.add_argument("--small-only", action="store_true", help="leave the 200M model out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}

    async def go() -> None:
        figures.update(await measure_all(arguments))

    run(go())
    known = PETALS | PETALS_200M
    rows = [[name, f"{value:.2f}", f"{known[name]:.1f}" if name in known else ""] for name, value in figures.items()]
    print_table(["figure (ms)", "here", "Petals, as measured for the design"], rows)
    print("\nLlama blocks, fp32, CPU, one thread a process, medians of turns taken one after the other.")
    print("local_ms: transformers in one process; span_ms: our span in one process, no swarm; peers_N_ms: the swarm.")
    print("fixed_ms: peers_1_ms - span_ms, what the swarm adds; per_hop_ms: (peers_4_ms - peers_1_ms) / 3.")
    print("Both are the medians of each turn's differences.")
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
