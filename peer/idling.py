"""Serves only while the machine is otherwise idle: looks again and again, and pauses or resumes. Measures nothing."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from shoal.peer.idle import Idleness

if TYPE_CHECKING:
    from shoal.peer.idle import IdleLimits, Sample
    from shoal.peer.pausing import Pausing

logger = logging.getLogger("shoal.peer")

MACHINE = "machine"  # who wants the pause
LOOK_S = 2.0


class Looks(Protocol):
    """Whatever tells what others do with the machine."""

    def sample(self) -> Sample:
        """Since the last call; may block."""
        ...


async def serve_while_idle(pausing: Pausing, limits: IdleLimits, others: Looks) -> None:
    """Until cancelled."""
    idleness, loop = Idleness(limits), asyncio.get_running_loop()
    pausing.hold(MACHINE, idleness.why)
    while True:
        await asyncio.sleep(LOOK_S)
        sample = await asyncio.to_thread(others.sample)
        if idleness.look(sample, loop.time()):
            pausing.release(MACHINE)
        else:
            pausing.hold(MACHINE, idleness.why)
