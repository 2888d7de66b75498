"""The process whose memory the engine's benchmark measures: serves blocks as a peer does, then says what it holds."""

from __future__ import annotations

import argparse
import asyncio
import json

import psutil
from _loop import run
from shoal.blocks.lean import leave_out

SETTLE_S = 3.0


def main() -> None:
    """Print, as JSON, the MB that are resident after a prompt, and those of them that no other process shares."""
    parser = argparse.ArgumentParser()
    parser.add_argument("device")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    leave_out()  # as the command line does, before anything heavy is imported
    resident_mb, own_mb = run(_memory_mb(options.device, tiny=options.tiny))
    print(json.dumps({"idle_process_rss_mb": resident_mb, "idle_process_own_mb": own_mb}))


async def _memory_mb(device: str, *, tiny: bool) -> tuple[float, float]:
    import torch
    from _engine_link import served
    from _engine_models import Bench, states

    bench = Bench(torch.device(device), tiny=tiny)
    span = bench.span(bench.size(8, 2), 4096)
    async with served(span) as (_node, client):
        session, _ = await client.open(64)
        await client.step(session, 0, 0, states(32, span).cpu())
        client.end(session)
        await asyncio.sleep(0.0 if tiny else SETTLE_S)
        used = psutil.Process().memory_full_info()
    return used.rss / 1e6, used.uss / 1e6


if __name__ == "__main__":
    main()
