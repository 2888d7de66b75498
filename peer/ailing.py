"""Takes a peer whose device fails steps, but is not lost, out of the swarm for a while: longer, if it goes on.

Most often another program took the device's memory. Clients go elsewhere at once; without this each of them, and every
new one, would have to learn by a failure that this peer will not do.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.peer.pausing import Pausing

DEVICE = "device"  # who wants the pause
FIRST_S, LONGEST_S = 15.0, 600.0
WELL_S = 600.0  # without a fault for so long, the next one counts as the first


def lost(device: str) -> str:
    """What its owner is told of a device that is."""
    return (
        f"{device} stopped working and this peer left the swarm; its clients go on elsewhere. Look at the driver's "
        "messages (dmesg, nvidia-smi), then start the peer again"
    )


async def rest_after_faults(faulted: asyncio.Event, pausing: Pausing) -> None:
    """Pause each time `faulted` is set; until cancelled."""
    loop, rest_s = asyncio.get_running_loop(), FIRST_S
    try:
        while True:
            began = loop.time()
            await faulted.wait()
            rest_s = FIRST_S if loop.time() - began >= WELL_S else rest_s
            pausing.hold(DEVICE, f"the device failed a step (is its memory full?); serving again in {rest_s:.0f} s")
            await asyncio.sleep(rest_s)
            faulted.clear()
            pausing.release(DEVICE)
            rest_s = min(2 * rest_s, LONGEST_S)
    finally:
        pausing.release(DEVICE)
