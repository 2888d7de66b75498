"""Owns the choice between ways to compute one thing, by measuring, and the file that remembers it; knows no kernels."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import torch
from shoal.blocks.whole_file import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_FILE = "choices.json"
_REPEATS = 7
_FLUSH_BYTES = 1 << 28  # more than any cache of a GPU, so that weights are read from its memory as in a real step
_log = logging.getLogger(__name__)


class Tuner:
    """Remembers for each key which candidate was fastest, in `folder` (None: in this process alone)."""

    def __init__(self, folder: Path | None, measure: Callable[[Callable[[], object]], float] | None = None) -> None:
        self._path = None if folder is None else folder / _FILE
        self._measure = measure or cuda_seconds
        self._known = _read(self._path)

    def choose(self, key: str, candidates: Mapping[str, Callable[[], object]]) -> str:
        """The name of the fastest candidate, measured unless known; the only one, if there is but one.

        A candidate that raises RuntimeError is out. Must not be called while a CUDA graph is captured. Raises
        RuntimeError if all are out.
        """
        if len(candidates) == 1:
            return next(iter(candidates))
        known = self._known.get(key)
        if known is not None and known in candidates:
            return known
        times = {name: seconds for name, run in candidates.items() if (seconds := self._time(name, run)) is not None}
        if not times:
            raise RuntimeError(f"No way to compute {key} works.")
        best = min(times, key=lambda name: times[name])
        self._known[key] = best
        self._keep(key, best)
        return best

    def _keep(self, key: str, best: str) -> None:
        """Note a choice in the file; one that cannot be written costs the next start's measuring, and is told once."""
        if self._path is None:
            return
        content = json.dumps({**_read(self._path), key: best}, indent=1, sort_keys=True)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, content.encode())
        except OSError as error:
            self._path = None
            _log.info("The choice of kernels is not kept, and the next start measures again: %s", error)

    def _time(self, name: str, run: Callable[[], object]) -> float | None:
        try:
            return self._measure(run)
        except RuntimeError as error:
            _log.info("%s is out: %s", name, error)
            return None


def cuda_seconds(run: Callable[[], object]) -> float:
    """Median time of `run` with cold caches on the current device, without its first call, which may compile."""
    run()
    sweep = _sweep()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(_REPEATS)]
    for begin, end in marks:
        sweep.sum()  # a read: written lines would have to leave the cache while `run` is timed
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    times: list[float] = sorted(begin.elapsed_time(end) for begin, end in marks)
    return times[_REPEATS // 2] / 1e3


def _sweep() -> torch.Tensor:
    """What to read between two runs; little, where the memory is full."""
    try:
        return torch.zeros(_FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")
    except torch.cuda.OutOfMemoryError:
        return torch.zeros(1, dtype=torch.int32, device="cuda")


def _read(path: Path | None) -> dict[str, str]:
    """What the file holds, or nothing if it is missing or damaged."""
    if path is None:
        return {}
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in held.items() if isinstance(v, str)} if isinstance(held, dict) else {}
