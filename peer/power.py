"""A GPU's power limit while a peer runs: held by the driver where it lets us, else by resting between engine steps."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shoal.peer.config import PeerError
from shoal.peer.duty import Duty
from shoal.peer.gpu import GpuError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shoal.peer.gpu import Gpu

logger = logging.getLogger("shoal.peer")

LOOK_S = 1.0


@contextmanager
def limited(gpu: Gpu | None, device: str, watts: float) -> Iterator[Duty | None]:
    """Hold the GPU under `watts` as long as this lasts; the driver's limit is then what it was before.

    Yields by what rule to rest, if the driver alone does not do it. Errors: `PeerError` if it cannot be done at all.
    """
    if gpu is None or gpu.power_w() is None:
        raise PeerError(
            f"--max-power: nothing here tells the power of {device}, only NVIDIA's driver would: leave it out"
        )
    lowest, highest = gpu.range_w() or (0.0, float("inf"))
    if watts > highest:
        raise PeerError(
            f"--max-power: {watts:g} W is more than this GPU can draw; its driver takes up to {highest:g} W"
        )
    before = gpu.limit_w()
    held = _held_by_driver(gpu, max(watts, lowest))
    if held and watts < lowest:
        logger.info("the driver goes down to %g W; resting between engine steps does the rest", lowest)
    try:
        yield None if held and watts >= lowest else Duty(watts)
    finally:
        if held and before is not None:
            _restore(gpu, before)


async def steer(duty: Duty, gpu: Gpu, busy_s: Callable[[], float]) -> None:
    """Let `duty` know what is drawn, again and again, until cancelled. `busy_s`: seconds of the engine's work."""
    warned = False
    at, worked_s, energy_j = time.monotonic(), busy_s(), await asyncio.to_thread(gpu.energy_j)
    while True:
        await asyncio.sleep(LOOK_S)
        now, worked_now_s = time.monotonic(), busy_s()
        energy_now_j = await asyncio.to_thread(gpu.energy_j)
        if energy_j is not None and energy_now_j is not None:
            power_w: float | None = (energy_now_j - energy_j) / (now - at)
        else:
            power_w = await asyncio.to_thread(gpu.power_w)
        if power_w is not None:
            duty.measured(power_w, min(1.0, (worked_now_s - worked_s) / (now - at)))
            if duty.hopeless and not warned:
                logger.warning(
                    "this GPU draws %.0f W even with little work; --max-power is %g W", power_w, duty.limit_w
                )
            warned = duty.hopeless
        at, worked_s, energy_j = now, worked_now_s, energy_now_j


def _held_by_driver(gpu: Gpu, watts: float) -> bool:
    try:
        gpu.set_limit(watts)
    except GpuError as error:
        why = "only root may set the driver's power limit" if error.denied else f"the driver does not set it ({error})"
        advice = f"`sudo nvidia-smi -i {gpu.uuid} -pl {watts:g}` before the start would" if error.denied else "it holds"
        logger.warning(
            "%s: this peer rests between its steps instead, which holds the average, not each moment%s",
            why, f"; {advice} hold both" if error.denied else "",
        )  # fmt: skip
        return False
    logger.info("the driver holds this GPU under %g W until this peer ends", watts)
    return True


def _restore(gpu: Gpu, watts: float) -> None:
    try:
        gpu.set_limit(watts)
    except GpuError as error:
        logger.warning("could not set this GPU's power limit back to %g W: %s", watts, error)
