"""Carries out the deeds of the larger space, and lets deeds wait for their moment: a message of a kind that leaves."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from shoal.peer.wire import Hidden

from tests.sim.network import messages_in
from tests.sim.swarm import N_BLOCKS
from tests.sim.trouble import Trouble

if TYPE_CHECKING:
    from tests.sim.network import Way
    from tests.sim.schedule import Deed
    from tests.sim.swarm import SimPeer

LONGEST_WAIT_S = 0.8  # for a moment that may never come
LATE_S = (0.0, 0.002, 0.02)  # after a machine's timers, what waits for it comes
TURNED_OUT = 0.3  # of a pause after which leases that are left are ended


class WorseTrouble(Trouble):
    """See `Trouble`."""

    _moment: tuple[str, int, asyncio.Future[Way]] | None = None  # that is waited for
    _way: Way | None = None  # of the message at which the deed under way strikes

    async def run(self) -> None:
        """See `Trouble`."""
        self._it.net.listeners.append(self._hear)
        await super().run()

    async def wait_for(self, deed: Deed) -> None:
        """See `Trouble`."""
        await super().wait_for(deed)
        self._way = None
        if not deed.at:
            return
        met: asyncio.Future[Way] = asyncio.get_running_loop().create_future()
        self._moment = deed.at, deed.nth, met
        done, _ = await asyncio.wait([met], timeout=LONGEST_WAIT_S)
        self._moment = None
        if done:
            self._way = met.result()
            self._say(f"{'->'.join(self._way)} {deed.at}: now, or {deed.lag_s} s later")
            await asyncio.sleep(deed.lag_s)

    def _hear(self, source: str, target: str, data: bytes) -> None:
        if self._moment is None:
            return
        kind, left, met = self._moment
        left -= sum(kind in _kinds(message) for message in messages_in(data))
        self._moment = kind, left, met
        if left <= 0 and not met.done():
            met.set_result((source, target))

    def _victim(self, deed: Deed, *, leaving: bool = False) -> str | None:
        running = self._running(leaving=leaving)
        if self._way is not None and deed.whom:
            hops = [name for name in self._way if name in running]
            if deed.whom == "other":
                hops = [name for name in self._in_use(leaving=leaving) if name not in self._way] or hops
            if hops:
                return hops[0 if deed.whom == "source" else -1]
        return super()._victim(deed, leaving=leaving)

    def _pair(self, deed: Deed) -> Way | None:
        return self._way if self._way is not None and deed.whom else super()._pair(deed)

    # -- machines -------------------------------------------------------------------------------------------------

    async def _hang(self, deed: Deed) -> None:
        if (name := self._victim(deed, leaving=True)) is not None:
            self._say(f"{self._who(name)} hangs for {deed.for_s:.2f} s")
            self._it.net.hang(name)
            held = self._it.net.hung[name]
            self._later(deed, lambda: self._resume_if(name, held))

    async def _resume_if(self, name: str, held: object) -> None:
        if self._it.net.hung.get(name) is held:  # else it was killed, and is another one
            await self._resume(name)

    async def _freeze(self, deed: Deed) -> None:
        self._stop(deed, self._victim(deed, leaving=True), clock_stood=False)

    async def _suspend(self, deed: Deed) -> None:
        self._stop(deed, self._victim(deed, leaving=True), clock_stood=True)

    async def _freeze_client(self, deed: Deed) -> None:
        self._stop(deed, self._client(deed), clock_stood=False)

    async def _suspend_client(self, deed: Deed) -> None:
        self._stop(deed, self._client(deed), clock_stood=True)

    def _stop(self, deed: Deed, name: str | None, *, clock_stood: bool) -> None:
        net = self._it.net
        if name is None or name in net.hung or name in net.dead:
            return
        self._say(f"{self._who(name)} stands still for {deed.for_s:.2f} s" + (", and its clock" if clock_stood else ""))
        net.freeze(name)
        held, late_s = net.hung[name], LATE_S[int(deed.aim * 977 % len(LATE_S))]

        async def go_on() -> None:
            if net.hung.get(name) is held:
                self._say(f"{name} goes on")
                await net.thaw(name, clock_stood=clock_stood, late_s=late_s)

        self._later(deed, go_on)

    async def _restart(self, deed: Deed) -> None:
        if (name := self._victim(deed, leaving=True)) is not None:
            for _ in range(3):
                self._say(f"{self._who(name)} is killed, for {deed.for_s:.2f} s")
                await self._it.kill(name)
                self._changed()
                await asyncio.sleep(deed.for_s)
                await self._bring_back(name)
                self._changed()
                await asyncio.sleep(0.02 + 0.2 * deed.aim)

    async def _move(self, deed: Deed) -> None:
        if (name := self._victim(deed)) is not None:
            start = int(deed.aim * 131 % N_BLOCKS)
            stop = start + 1 + int(deed.aim * 733 % (N_BLOCKS - start))
            self._it.stock[name] = replace(self._it.stock[name], start=start, stop=stop)
            self._say(f"{name} will be back with blocks {start}:{stop}")
            await self._kill_all([name], deed)

    async def _pause(self, deed: Deed) -> None:
        if (name := self._victim(deed)) is not None:
            self._say(f"{name} is paused for {deed.for_s:.2f} s")
            peer = self._it.peers[name]
            peer.tell(peer.node.pause)
            self._reach.unfit[name] += 1
            await peer.announcer.announce()
            self._later(deed, lambda: self._go_on(peer))
            if deed.aim < 0.5:
                self._later(replace(deed, for_s=TURNED_OUT * deed.for_s), lambda: self._turn_out(peer))

    async def _go_on(self, peer: SimPeer) -> None:
        self._reach.unfit[peer.peer_id] -= 1
        peer.tell(peer.node.resume)
        if self._it.peers.get(peer.peer_id) is peer:
            await peer.announcer.announce()

    async def _turn_out(self, peer: SimPeer) -> None:
        peer.tell(peer.node.dismiss, "its volunteer wants it back")

    # -- ways -----------------------------------------------------------------------------------------------------

    async def _mute(self, deed: Deed) -> None:
        if (name := self._victim(deed)) is not None:
            self._cut(deed, [(name, other) for other in (*self._all(), *self._clients()) if other != name])

    async def _deaf(self, deed: Deed) -> None:
        if (name := self._victim(deed)) is not None:
            self._cut(deed, [(other, name) for other in (*self._all(), *self._clients()) if other != name])

    async def _half_open(self, deed: Deed) -> None:
        if (pair := self._pair(deed)) is not None:
            here, there = pair if deed.aim * 89 % 1 < 0.5 else pair[::-1]
            self._say(f"{here} has lost its links with {there}, which is not told")
            self._it.net.forsake(here, there)
            self._blip(here, there)

    async def _stall_link(self, deed: Deed) -> None:
        if (pair := self._pair(deed)) is not None:
            self._say(f"links {pair[0]}-{pair[1]} stand still for {deed.for_s:.2f} s")
            for way in (pair, pair[::-1]):
                for stream in self._it.net.streams_of(*way):
                    stream.stall(self._it.net.now() + deed.for_s)
            self._blip(*pair)

    # -- the directory --------------------------------------------------------------------------------------------

    async def _empty(self, deed: Deed) -> None:
        self._say(f"clients find nobody in the directory for {deed.for_s:.2f} s")
        self._blind(deed, "empty")

    async def _dark(self, deed: Deed) -> None:
        self._say(f"no look-up in the directory ends for {deed.for_s:.2f} s")
        self._blind(deed, "dark")

    def _blind(self, deed: Deed, how: str) -> None:
        self._turn(how, 1)
        self._later(deed, lambda: self._see_again(how))

    async def _see_again(self, how: str) -> None:
        self._say("the directory is there again")
        self._turn(how, -1)

    def _turn(self, how: str, count: int) -> None:
        self._reach.blind += count
        setattr(self._it.blinds, how, getattr(self._it.blinds, how) + count)


def _kinds(message: object) -> tuple[str, ...]:
    """What a message may be waited for as."""
    if isinstance(message, Hidden):
        return ("Replay",) if message.replay else ("Hidden", "Rows") if message.count > 1 else ("Hidden",)
    return (type(message).__name__,)
