"""What other programs use of this machine: measures between two looks. Ours are this process, what it started, and
every other peer of this user. Decides nothing.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import psutil
from shoal.peer.attended import input_s
from shoal.peer.config import PeerError
from shoal.peer.idle import Sample
from shoal.peer.sockets import pids

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.peer.gpu import Gpu

PEOPLE_EVERY_S = 4.0  # asking about people may start a process


class Others:
    """`sample` tells of the time since the last one. `busy_s`: seconds that our own engine has worked so far."""

    def __init__(self, gpu: Gpu | None, busy_s: Callable[[], float], *, people: bool) -> None:
        self._gpu, self._busy_s, self._people = gpu, busy_s, people
        self._input: tuple[float, float | None] | None = None  # when asked, and what it was then
        self._at, self._worked = time.monotonic(), busy_s()
        self._machine, self._ours = _machine(), _ours(_own())

    def sample(self) -> Sample:
        """Blocks for some milliseconds, when people are asked about for up to a few seconds."""
        now, worked, own = time.monotonic(), self._busy_s(), _own()
        share = (worked - self._worked) / max(now - self._at, 1e-3)
        self._at, self._worked = now, worked
        gpu = None if self._gpu is None else self._gpu.used_by_others(own, min(1.0, share))
        return Sample(gpu, self._cpu(own), self._since_input(now) if self._people else None)

    def _cpu(self, own: set[int]) -> float | None:
        machine, ours = _machine(), _ours(own)
        (busy, whole), used = (b - a for a, b in zip(self._machine, machine, strict=True)), _grown(self._ours, ours)
        self._machine, self._ours = machine, ours
        return min(1.0, max(0.0, (busy - used) / whole)) if whole > 0 else None

    def _since_input(self, now: float) -> float | None:
        if self._input is None or now - self._input[0] >= PEOPLE_EVERY_S:
            self._input = now, input_s()
        asked_at, since_s = self._input
        return None if since_s is None else since_s + now - asked_at


def _own() -> set[int]:
    try:
        roots = {os.getpid(), *pids()}
    except PeerError:
        roots = {os.getpid()}
    own = set(roots)
    for root in roots:
        try:
            own |= {child.pid for child in psutil.Process(root).children(recursive=True)}
        except psutil.Error:
            continue
    return own


def _machine() -> tuple[float, float]:
    """Seconds of all cores so far: busy, and busy or not."""
    times = psutil.cpu_times()
    busy = times.user + times.system + times.nice + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0)
    return busy, busy + times.idle + getattr(times, "iowait", 0.0) + getattr(times, "steal", 0.0)


def _ours(own: set[int]) -> dict[tuple[int, float], float]:
    """Seconds of processor time by process; its start goes with the id, since ids come again."""
    used = {}
    for pid in own:
        try:
            process = psutil.Process(pid)
            times = process.cpu_times()
        except psutil.Error:
            continue
        used[pid, process.create_time()] = times.user + times.system
    return used


def _grown(before: dict[tuple[int, float], float], after: dict[tuple[int, float], float]) -> float:
    return sum(used - before.get(process, 0.0) for process, used in after.items())
