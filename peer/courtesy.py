"""What a volunteer wants of a peer beside serving, as long as it runs: a limit on power, and to serve only while the
machine is idle. Puts the parts together; decides nothing.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shoal.peer.account import Account
    from shoal.peer.config import PeerConfig
    from shoal.peer.duty import Duty
    from shoal.peer.pausing import Pausing


@asynccontextmanager
async def courteous(config: PeerConfig, account: Account, pausing: Pausing) -> AsyncIterator[Duty | None]:
    """See above; yields how the engine is to rest between its steps, if it is to. Errors: `PeerError`."""
    if config.idle is None and config.max_power_w is None:
        yield None
        return
    from shoal.peer.gpu import open_gpu
    from shoal.peer.idling import serve_while_idle
    from shoal.peer.others import Others
    from shoal.peer.power import limited, steer

    gpu = await asyncio.to_thread(open_gpu, config.device)
    power = nullcontext() if config.max_power_w is None else limited(gpu, config.device, config.max_power_w)
    with power as duty:
        async with asyncio.TaskGroup() as tasks:
            chores = []
            if config.idle is not None:
                others = await asyncio.to_thread(Others, gpu, account.busy_s, people=config.idle.input_s > 0)
                chores.append(tasks.create_task(serve_while_idle(pausing, config.idle, others)))
            if duty is not None and gpu is not None:
                chores.append(tasks.create_task(steer(duty, gpu, account.busy_s)))
            try:
                yield duty
            finally:
                for chore in chores:
                    chore.cancel()
