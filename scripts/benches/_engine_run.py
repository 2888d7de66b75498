"""Runs the engine benchmark's parts, shows what they found and says which goals were missed."""

from __future__ import annotations

import importlib
import time
import traceback
from typing import TYPE_CHECKING

import torch
from _engine_goals import missed, show
from _engine_models import Bench, Figures, Skipped, release, tell
from _report import write_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path


def measure(parts: Mapping[str, tuple[str, str]], options: argparse.Namespace) -> int:
    """The exit status: 0 if all of `parts` (name: module, function) ran, 1 if not, 2 without the device asked for."""
    if options.gpu and not (options.tiny or torch.cuda.is_available()):
        tell("bench engine: --gpu needs a CUDA device (with --tiny it only tries its parts, on whatever is here)")
        return 2
    torch.set_num_threads(1 if options.tiny else options.threads)  # tests run beside others on a few cores
    bench = Bench(_device(gpu=options.gpu), tiny=options.tiny)
    failed = Run(bench, time.monotonic() + options.seconds, options.json).parts(parts)
    show(bench.figures)
    _tell_end(bench, failed, tiny=options.tiny)
    return 1 if failed else 0


class Run:
    """Parts one after the other; what each has found is written at once, so that a killed run leaves what it has."""

    def __init__(self, bench: Bench, deadline: float, json: Path | None) -> None:
        self._bench, self._deadline, self._json = bench, deadline, json

    def parts(self, parts: Mapping[str, tuple[str, str]]) -> list[str]:
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
