"""Clocks of the engine's benchmark: wall time and device time of repeated work, and the memory's copy rate."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

SETTLE_ROUNDS = 6
COPY_BYTES = 2 << 30
HOST_ROUNDS, HOST_PAUSE_S = 5, 0.1


@dataclass(frozen=True)
class Timed:
    """Milliseconds a call: on the wall, up to the end of the device's work, and between CUDA events."""

    wall_ms: float
    device_ms: float


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def once(work: Callable[[], object], count: int, device: torch.device) -> Timed:
    """`count` calls, one after the other, waited for at the end only."""
    synchronize(device)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
    started = time.perf_counter()
    if marks:
        marks[0].record()
    for _ in range(count):
        work()
    if marks:
        marks[1].record()
    synchronize(device)
    wall_ms = (time.perf_counter() - started) * 1e3 / count
    return Timed(wall_ms, marks[0].elapsed_time(marks[1]) / count if marks else wall_ms)


def settle(work: Callable[[], object], count: int, device: torch.device) -> None:
    """Call until a round is no faster than the best before: kernels are then chosen, compiled and captured."""
    best = float("inf")
    for _ in range(SETTLE_ROUNDS):
        found = once(work, count, device).wall_ms
        if found > 0.9 * best:
            return
        best = found


def timed(work: Callable[[], object], device: torch.device, count: int = 48, rounds: int = 3) -> Timed:
    """Medians of some rounds of `count` calls, after a warm-up."""
    settle(work, count, device)
    found = [once(work, count, device) for _ in range(rounds)]
    return Timed(statistics.median(one.wall_ms for one in found), statistics.median(one.device_ms for one in found))


def host_ms(work: Callable[[], object], device: torch.device, count: int) -> float:
    """Milliseconds until a call returns, the device being idle before: Python and launches, no kernels.

    The least of some medians, a while apart: whoever shares the machine's cores can double a median for that while.
    """
    settle(work, count, device)
    medians = []
    for _ in range(HOST_ROUNDS):
        times = []
        for _ in range(count):
            synchronize(device)
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        medians.append(statistics.median(times))
        time.sleep(HOST_PAUSE_S)
    synchronize(device)
    return min(medians) * 1e3


def copy_rate(device: torch.device, n_bytes: int = COPY_BYTES) -> float:
    """Bytes a second of a copy inside the device's memory, read and written bytes both counted."""
    source = torch.empty(n_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best_ms = min(once(lambda: target.copy_(source), 10, device).device_ms for _ in range(5))
    return 2 * n_bytes / best_ms * 1e3


def graphed(work: Callable[[], object], device: torch.device, rounds: int = 7) -> float:
    """Milliseconds of a replay of `work`, captured as one CUDA graph: what its kernels take, without their launches.
    Where there are no such graphs, of a call."""
    if device.type != "cuda":
        return once(work, 1, device).device_ms
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    return statistics.median(once(graph.replay, 5, device).device_ms for _ in range(rounds))
