"""The peers of the chaos benchmark: real processes under fixed identities, and what is done to them."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

import psutil
from _chaos_schedule import SPANS
from _swarm import PEER, tell

if TYPE_CHECKING:
    from pathlib import Path

    from _chaos_schedule import Fault
    from shoal.client.cli.children import Child, Children

LEAVE_S = 60.0


class Peer:
    """One volunteer: a process that comes and goes, with an identity that stays."""

    def __init__(self, number: int, children: Children, argv: list[str]) -> None:
        self.number, self.peer_id, self.online = number, "", False
        self._children, self._argv = children, argv
        self._child: Child | None = None
        self._pid = 0

    async def start(self) -> None:
        """Start the process and wait until it is online."""
        began = time.perf_counter()
        start, stop = SPANS[self.number]
        self._child = await self._children.start(f"peer {self.number} ({start}:{stop})", self._argv)
        self._pid = self._child.pid
        self.peer_id = str((await self._child.event("event", "online"))["peer"])
        self.online = True
        tell(f"         peer {self.number} came online after {time.perf_counter() - began:.1f} s")

    async def suffer(self, fault: Fault) -> None:
        """Undergo a fault and come back. Errors: `CommandError` if the process does not."""
        self.online = False
        if fault.kind == "hang":
            await self._hang(fault)
            return
        if fault.kind == "drain":
            await self._leave()
        else:
            self._signal(signal.SIGKILL)
            await self._status()
        await asyncio.sleep(fault.away_s)
        await self.start()

    async def _hang(self, fault: Fault) -> None:
        pids = [self._pid, *(self._daemons() if fault.daemon else [])]
        for pid in pids:
            psutil.Process(pid).suspend()
        try:
            await asyncio.sleep(fault.away_s)
        finally:
            for pid in pids:
                psutil.Process(pid).resume()
        self.online = True

    async def _leave(self) -> None:
        began = time.perf_counter()
        self._signal(signal.SIGTERM)
        async with asyncio.timeout(LEAVE_S):
            status = await self._status()
        tell(f"         peer {self.number} left after {time.perf_counter() - began:.1f} s")
        if status:
            raise ChaosError(f"peer {self.number} left with status {status}")

    def _daemons(self) -> list[int]:
        return [child.pid for child in psutil.Process(self._pid).children(recursive=True)]

    def _signal(self, number: int) -> None:
        if self._child is not None:
            self._child.signal(number)

    async def _status(self) -> int:
        return 0 if self._child is None else await self._child.status()


class ChaosError(Exception):
    """A peer did not do what it should have done."""


def peers_of(children: Children, invite: str, folder: Path) -> list[Peer]:
    """One peer for each span, not started yet."""
    shared = [*PEER, "--model", "demo", "--join", invite, "--dtype", "float32", "--kv-tokens", "8192"]
    return [
        Peer(number, children, [*shared, "--blocks", f"{start}:{stop}", "--identity", str(folder / f"{number}.key")])
        for number, (start, stop) in enumerate(SPANS)
    ]
