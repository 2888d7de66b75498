"""Decode, prefill and recovery over emulated wide area networks, against what legs and compute must take."""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from _loop import run
from _report import print_table, write_json
from _swarm import Shape, median, tell
from _wan_ideal import Alone, ideal_decode, ideal_prefill, legs_of, mean, unpipelined_prefill
from _wan_recovery import HANG_GOAL_S, Recovery, recovery, verdict
from _wan_swarm import SETTINGS, decode_s, prefill_s, stage
from netlab.measure import round_trips
from netlab.namespace import why_not
from shoal.blocks.formats import FORMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _wan_swarm import Setting, Stage

PARTS = ("decode", "prefill", "recovery")
SHAPES = {
    "200m": Shape(blocks=16, hidden=1024, intermediate=2816, heads=16),
    "tiny": Shape(blocks=3, hidden=64, intermediate=128, heads=4),
}
SPARED = (0, 1)  # the spans with a second holder, one for each fault
RECOVERED = ("1gbit_5ms", "100mbit_100ms")
CONTEXT = 64


async def measure_all(places: dict[str, str], arguments: argparse.Namespace) -> dict[str, float]:
    """Every model in every setting, each in a swarm of its own; recovery with the first model."""
    figures: dict[str, float] = {}
    for number, (name, model) in enumerate(places.items()):
        for setting in arguments.settings:
            faults = not number and "recovery" in arguments.only and setting.name in RECOVERED
            if not faults and arguments.only == ["recovery"]:
                continue
            async with stage(model, setting, SPARED if faults else (), arguments.hosts) as made:
                if arguments.only != ["recovery"]:
                    figures |= await measure_model(name, made, setting, arguments)
                if faults:
                    figures |= stalls(setting, await recovery(made, setting, arguments.codec))
    return figures


async def measure_model(name: str, made: Stage, setting: Setting, arguments: argparse.Namespace) -> dict[str, float]:
    """Decode and prefill of one model in one setting."""
    tokens = min(arguments.prompt, made.model.ends.spec.max_position - 48)
    round_trip = median(round_trips(made.lab, "me", "p1", 30))
    tell(f"{name}: the first prompt, {setting.name}; compute without a network")
    first_s, chunks = await prefill_s(made, tokens, arguments.codec)
    alone = Alone(made.model, tokens)
    before = alone.measure(CONTEXT, chunks)
    figures = await measure_setting(name, made, setting, tokens, arguments)
    compute = mean(before, alone.measure(CONTEXT, chunks))
    legs = legs_of(setting, round_trip, arguments.codec, made.model.ends.spec.hidden_size)
    figures |= {
        f"{name}_rtt_ms_{setting.name}": 1e3 * round_trip,
        f"{name}_compute_ms_{setting.name}": 1e3 * (sum(compute.decode) + compute.ends),
        f"{name}_compute_apart_ms_{setting.name}": 1e3 * compute.apart,
    }
    if "decode" in arguments.only:
        figures |= compared(f"{name}_decode", setting, figures, ideal_decode(compute, legs))
    if "prefill" in arguments.only:
        figures |= compared(f"{name}_prefill", setting, figures, ideal_prefill(compute, legs, tokens))
        whole = unpipelined_prefill(compute, legs, tokens)
        figures[f"{name}_prefill_first_ms_{setting.name}"] = 1e3 * first_s
        figures[f"{name}_prefill_first_chunks_{setting.name}"] = float(chunks)
        figures[f"{name}_prefill_unpipelined_ideal_ms_{setting.name}"] = 1e3 * whole
    return figures


async def measure_setting(
    name: str, made: Stage, setting: Setting, tokens: int, arguments: argparse.Namespace
) -> dict[str, float]:
    """A decode step; the prompt's pass, pipelined as sessions do it and whole: medians."""
    figures = {}
    if "decode" in arguments.only:
        tell(f"{name}: decode, {setting.name}")
        seconds = await decode_s(made, CONTEXT, arguments.steps, arguments.codec)
        figures[f"{name}_decode_ms_{setting.name}"] = 1e3 * seconds
    if "prefill" in arguments.only:
        tell(f"{name}: prefill of {tokens} tokens, {setting.name}")
        found = [await prefill_s(made, tokens, arguments.codec) for _ in range(arguments.repeats)]
        times = [seconds for seconds, _ in found]
        whole = [(await prefill_s(made, tokens, arguments.codec, tokens))[0] for _ in range(arguments.repeats)]
        figures |= {
            f"{name}_prefill_ms_{setting.name}": 1e3 * median(times),
            f"{name}_prefill_whole_ms_{setting.name}": 1e3 * median(whole),
            f"{name}_prefill_over_whole_{setting.name}": median(times) / median(whole),
            f"{name}_prefill_chunks_{setting.name}": median([float(chunks) for _, chunks in found]),
        }
    return figures


def compared(name: str, setting: Setting, figures: dict[str, float], ideal: float) -> dict[str, float]:
    """The ideal of a figure, and their ratio."""
    measured = figures[f"{name}_ms_{setting.name}"]
    return {f"{name}_ideal_ms_{setting.name}": 1e3 * ideal, f"{name}_over_ideal_{setting.name}": measured / 1e3 / ideal}


def stalls(setting: Setting, found: Recovery) -> dict[str, float]:
    """A recovery's figures."""
    parts = {
        "stall_kill": found.killed, "connect": found.connect, "replay": found.replay,
        "two_round_trips": found.two_round_trips, "bound": found.bound, "stall_hang": found.hung,
    }  # fmt: skip
    figures = {f"{part}_s_{setting.name}": seconds for part, seconds in parts.items()}
    return figures | {f"stall_kill_over_bound_{setting.name}": found.killed / found.bound}


def worst(figures: dict[str, float]) -> dict[str, float]:
    """The goals' figures: of all models the worst."""
    found: dict[str, float] = {}
    for key, value in figures.items():
        name = key.partition("_")[2]
        if "_over_ideal_" in key:
            found[name] = max(value, found.get(name, 0.0))
    return found


@contextmanager
def models(names: list[str]) -> Iterator[dict[str, str]]:
    """Where each model is; random ones are made now."""
    with tempfile.TemporaryDirectory() as folder:
        yield {name: "demo" if name == "demo" else str(SHAPES[name].save(Path(folder) / name)) for name in names}


def show(figures: dict[str, float], arguments: argparse.Namespace) -> None:
    """One line a model and setting, then recovery."""
    for part, goal in (("decode", 1.10), ("prefill", 1.25)):
        columns = ["", "ideal_"] if part == "decode" else ["", "ideal_", "first_", "whole_", "unpipelined_ideal_"]
        rows = [
            [f"{model} {setting.name}", *(f"{figures[f'{model}_{part}_{c}ms_{setting.name}']:.1f}" for c in columns),
             f"{figures[f'{model}_{part}_over_ideal_{setting.name}']:.2f}"]
            for model in arguments.models for setting in arguments.settings if part in arguments.only
        ]  # fmt: skip
        if rows:
            heads = ["ms" if not column else f"{column.replace('_', ' ')}ms" for column in columns]
            print_table([f"{part} (goal {goal:.2f})", *heads, "over ideal"], rows)
            print()
    if "recovery" in arguments.only:
        parts = ("stall_kill", "bound", "connect", "replay", "two_round_trips", "stall_hang")
        shown = [setting.name for setting in arguments.settings if f"bound_s_{setting.name}" in figures]
        rows = [
            [name, *(f"{figures[f'{part}_s_{name}']:.2f}" for part in parts), verdict(figures, name)] for name in shown
        ]
        print_table(["recovery (s)", *(part.replace("_", " ") for part in parts), "goals"], rows)
        print(f"bound = connect + replay + two round trips; a hang may take {HANG_GOAL_S:g} s.\n")
    print("3 peers and a client, fp32, one thread a process, all on this machine's cores, each on an emulated host.")
    print("ideal decode: 4 measured one-way legs + compute without a network: all spans in one process, one after")
    print("the other, measured before and after.")
    print("ideal prefill: the slowest stage, leg or all cores busy throughout, and one chunk through the rest.")
    print("whole: the prompt in one piece; first: the first prompt over new connections.")


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench wan", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--only", default=",".join(PARTS), help="of decode,prefill,recovery")
    parser.add_argument("--models", default="demo,200m", help="of demo,200m,tiny (default demo,200m)")
    parser.add_argument("--settings", default=",".join(s.name for s in SETTINGS), help="of the three (default: all)")
    parser.add_argument("--steps", type=int, default=60, help="decode steps (default 60)")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of the prompt (default 2048)")
    parser.add_argument("--repeats", type=int, default=3, help="of each prefill (default 3)")
    parser.add_argument(
        "--codec", choices=FORMS, default=None, help="of hidden states on the wire (default: as they are)"
    )
    parser.add_argument(
        "--hosts", default="", metavar="OPTIONS", help="how hosts use their lines, as scripts/wan takes it: idle=keep"
    )
    parser.add_argument("--tiny", action="store_true", help="everything, small, to see that it runs")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.models, arguments.settings = "tiny", SETTINGS[0].name
        arguments.steps, arguments.prompt, arguments.repeats = 8, 300, 1
    arguments.only, arguments.models = arguments.only.split(","), arguments.models.split(",")
    named = arguments.settings.split(",")
    arguments.settings = [setting for setting in SETTINGS if setting.name in named]
    unknown = [*(set(arguments.only) - set(PARTS)), *(set(arguments.models) - {"demo", *SHAPES})]
    unknown += set(named) - {setting.name for setting in SETTINGS}
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}")
    return arguments


def main() -> None:
    """Measure, print, write."""
    arguments = read_arguments()
    if reason := why_not():
        sys.exit(f"scripts/bench wan: {reason}")
    torch.set_num_threads(1)
    figures: dict[str, float] = {}

    async def go() -> None:
        with models(arguments.models) as places:
            figures.update(await measure_all(places, arguments))

    run(go())
    figures |= worst(figures)
    show(figures, arguments)
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
