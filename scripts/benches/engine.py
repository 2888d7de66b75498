"""The engine against the hardware and against what runs beside it: decode, batching, prefixes, memory, errors."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from _engine_goals import missed, show
from _engine_models import Bench, Figures, Skipped, release, tell
from _report import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Name of a part -> the module and function that measure it. The order is that of running: what may hang comes last.
GPU_PARTS = {
    "floors": ("_engine_decode", "floors"),
    "matmul": ("_engine_matmul", "matmul"),
    "decode": ("_engine_decode", "decode"),
    "errors": ("_engine_errors", "errors"),
    "mixed": ("_engine_decode", "mixed"),
    "requests": ("_engine_load", "requests"),
    "stall": ("_engine_load", "stall"),
    "prefix": ("_engine_node", "prefix"),
    "node": ("_engine_node", "node"),
    "process": ("_engine_host", "process"),
    "deep": ("_engine_decode", "deep"),
    "wide": ("_engine_decode", "wide"),
    "eager": ("_engine_hf", "eager"),
    "batching": ("_engine_hf", "batching"),
}
CPU_PARTS = {
    "speed": ("_engine_cpu", "speed"),
    "perplexity": ("_engine_cpu", "perplexity"),
    "errors": ("_engine_errors", "errors"),
    "idle": ("_engine_host", "idle"),
}


def main(argv: Sequence[str]) -> int:
    """0 if all parts ran; 1 if one failed or there was no time for it. Goals that are missed are named, no failure."""
    options = _parser().parse_args(argv)
    parts = GPU_PARTS if options.gpu else CPU_PARTS
    chosen = options.only.split(",") if options.only else list(parts)
    if unknown := [name for name in chosen if name not in parts]:
        tell(f"bench engine: no part is named {unknown[0]}: choose of {','.join(parts)}")
        return 2
    if options.gpu and not (options.tiny or torch.cuda.is_available()):
        tell("bench engine: --gpu needs a CUDA device (with --tiny it only tries its parts, on whatever is here)")
        return 2
    torch.set_num_threads(1 if options.tiny else options.threads)  # tests run beside others on a few cores
    bench = Bench(_device(gpu=options.gpu), tiny=options.tiny)
    failed = Run(bench, time.monotonic() + options.seconds, options.json).parts({name: parts[name] for name in chosen})
    show(bench.figures)
    _tell_end(bench, failed, tiny=options.tiny)
    return 1 if failed else 0


class Run:
    """Parts one after the other; what each has found is written at once, so that a killed run leaves what it has."""

    def __init__(self, bench: Bench, deadline: float, json: Path | None) -> None:
        self._bench, self._deadline, self._json = bench, deadline, json

    def parts(self, parts: dict[str, tuple[str, str]]) -> list[str]:
        """Names of those that failed."""
        return [name for name, place in parts.items() if not self._part(name, place)]

    def _part(self, name: str, place: tuple[str, str]) -> bool:
        started = time.monotonic()
        if started > self._deadline:
            tell(f"{name}: no time is left")
            return False
        tell(f"{name} ...")
        try:
            work: Callable[[Bench], Figures] = getattr(importlib.import_module(place[0]), place[1])
            self._bench.figures |= work(self._bench)
        except Skipped as reason:
            tell(f"{name}: left out: {reason}")
        except Exception:  # noqa: BLE001 - the other parts go on
            tell(f"{name}: failed\n{traceback.format_exc()}")
            return False
        finally:
            release(self._bench.device)
            self._bench.figures[f"seconds_{name}"] = round(time.monotonic() - started, 1)
            write_json(self._json, self._bench.figures)
        return True


def _device(*, gpu: bool) -> torch.device:
    return torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")


def _tell_end(bench: Bench, failed: Sequence[str], *, tiny: bool) -> None:
    cuda = bench.device.type == "cuda"
    where = torch.cuda.get_device_name(bench.device) if cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"\n{where}, torch {torch.__version__}; random Llama blocks of {bench.shape.name} unless a name says more.")
    print(
        "A small table stands for embedding and head, here and in what runs beside. transformers on the CPU takes its"
    )
    print("eight sessions one after the other: nothing in it batches sessions that began apart.")
    if failed:
        print(f"Failed: {', '.join(failed)}; stderr says why.")
    if not tiny and (behind := missed(bench.figures)):
        print(f"Goals missed: {', '.join(behind)}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench engine", description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="the CUDA device's parts instead of the CPU's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as one JSON object")
    parser.add_argument("--only", metavar="PART,...", help=f"of {','.join(GPU_PARTS)}; CPU: {','.join(CPU_PARTS)}")
    parser.add_argument(
        "--tiny", action="store_true", help="small shapes and few steps: tries the parts, measures nothing"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--seconds", type=float, default=500.0, help="start no part after this (default 500)")
    return parser


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        os._exit(status)  # a run of transformers that hangs would hold the exit up
    sys.exit(status)
