"""A peer's life: read the model, choose a span, load it, measure it, join, serve, leave. Puts the parts together."""

from __future__ import annotations

import asyncio
import json
import logging
import platform
import sys
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from shoal.blocks.hub_progress import stop_drawing
from shoal.dht.background import background
from shoal.dht.errors import HostError, JoinError
from shoal.dht.identity import Identity
from shoal.dht.leaving import leave_on_signals, unless
from shoal.dht.remembered import Remembered
from shoal.dht.threads import in_thread
from shoal.dht.version import shoal_version
from shoal.peer.account import Account
from shoal.peer.ailing import lost, rest_after_faults
from shoal.peer.announcer import Announcer, Facts, withdrawn_on_failure
from shoal.peer.choose import Seat, choose, keep_announced
from shoal.peer.config import PeerError, cache_folder
from shoal.peer.control import controlled
from shoal.peer.courtesy import courteous
from shoal.peer.engine import LAST_STEP_S, PATIENCE_S, DeviceEngine
from shoal.peer.farewell import hand_over, say_goodbye, withdraw
from shoal.peer.join import join
from shoal.peer.log import report
from shoal.peer.matching import warn_of_others
from shoal.peer.measure import measured
from shoal.peer.mover import Habit, Mover
from shoal.peer.node import Node
from shoal.peer.offering import node_config
from shoal.peer.order import EngineFault
from shoal.peer.pausing import Pausing
from shoal.peer.settle import settle, unsettle
from shoal.peer.watchdog import LIMITS_S, Watchdog

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.dht.host import Host
    from shoal.peer.config import PeerConfig
    from shoal.peer.duty import Duty
    from shoal.peer.fit import Fit
    from shoal.peer.join import Net
    from shoal.peer.loading import Model
    from shoal.peer.measure import Throughput
    from shoal.routing.rebalance import Move

logger = logging.getLogger("shoal.peer")

REJOIN_S = 1.0
LEAVING = "leaving the swarm; running sessions may finish (Ctrl-C again: at once)"


async def serve(config: PeerConfig) -> int:
    """Run a peer until SIGINT, SIGTERM or the terminal's end; a second signal leaves at once. Returns the exit status.

    Errors: `PeerError`, `BlocksError`, `DhtError`, each with one sentence.
    """
    leave = leave_on_signals(lambda: logger.info(LEAVING))
    identity = Identity.load_or_create(config.identity) if config.identity else Identity.generate()
    logger.info("reading the shape of %s", config.model)
    from shoal.peer.loading import open_and_fit

    if (found := await unless(leave, in_thread(open_and_fit, config))) is None:
        return 0
    life = _Life(config, identity, *found, leave)
    try:
        async with (
            controlled(identity.peer_id, life.account.answer),
            courteous(config, life.account, life.pausing) as life.duty,
        ):
            return await life.run()
    except ExceptionGroup as group:  # of the tasks that run beside it
        error: Exception = group
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        raise error from group
    finally:
        stop_drawing()  # a thread that is left behind would go on
        life.close(LAST_STEP_S)


class _Life:
    """From the first join to the last good-bye. The span outlives a network that has to be started again."""

    def __init__(self, config: PeerConfig, identity: Identity, model: Model, room: Fit, leave: asyncio.Event) -> None:
        self.config, self.identity, self.model, self.room, self.leave = config, identity, model, room, leave
        self.engine: DeviceEngine | None = None
        self.watchdog: Watchdog | None = None
        self.throughput: Throughput | None = None
        self.remembered = Remembered(cache_folder() / "swarms" / config.invite.namespace.hex())
        self.blocks, self.loading_s = config.blocks, 0.0
        self._ports = 0, 0  # of the last network
        self.dtype = config.dtype or str(model.spec.dtype).removeprefix("torch.")
        self.pausing = Pausing(config.drain_s)
        self.account = Account(config, identity.peer_id, self.pausing)
        self.duty: Duty | None = None

    async def run(self) -> int:
        """Serve, and join again under the same identity if the network daemon dies, or the relays that carried us."""
        broken = False
        while not self.leave.is_set() and not broken:
            try:
                broken = await self._run_once()
            except (HostError, JoinError) as error:
                if self.throughput is None:
                    raise
                logger.warning("cannot join again yet: %s", error)
            if not self.leave.is_set() and not broken:
                await self._wait_to_rejoin()
        if broken:
            raise PeerError(lost(self.config.device))
        logger.info("left the swarm")
        return 0

    async def _run_once(self) -> bool:
        """From joining until we leave, the daemon dies or the device is lost; True for the last."""
        async with AsyncExitStack() as stack:
            joining = join(self.config, self.identity, self.model, self.remembered, self._ports)
            if (net := await unless(self.leave, stack.enter_async_context(joining))) is None:
                return False
            self._ports = net.ports
            return await self._serve_spans(net)

    async def _wait_to_rejoin(self) -> None:
        self.account.stage = "rejoining"
        logger.warning("unhealthy: out of the network; joining again as %s", self.identity.peer_id)
        if self.config.json:
            _print({"event": "unhealthy", "peer": self.identity.peer_id})
        with suppress(TimeoutError):
            async with asyncio.timeout(REJOIN_S):
                await self.leave.wait()

    async def _serve_spans(self, net: Net) -> bool:
        """Serve, here and then where the swarm needs this peer more; True if the device is lost."""
        while not self.leave.is_set():
            async with withdrawn_on_failure(net.directory):
                engine = await unless(self.leave, self._engine(net))
            if engine is None:
                break
            if (move := await self._serve(net, engine)) is None:
                return engine.broken
            del engine
            async with withdrawn_on_failure(net.directory):
                await in_thread(self._unload, range(move.start, move.stop))
        await withdraw(net.directory)  # what it was about to load is announced
        return False

    def _unload(self, blocks: range) -> None:
        """Give the span's memory back, on the device as well: that of `blocks`, the next, may need all of it."""
        import torch

        self.close()
        self.engine, self.blocks = None, blocks
        unsettle()
        if self.config.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """End the device thread."""
        if self.watchdog is not None:
            self.watchdog.stop()
        if self.engine is not None:
            self.engine.close(patience_s)

    async def _engine(self, net: Net) -> DeviceEngine:
        """The loaded span, measured; made at the first join, since the swarm decides which blocks it holds."""
        if self.engine is None:
            self.blocks = blocks = self.blocks or await choose(net.directory, self._seat(net), net.survey)
            began = asyncio.get_running_loop().time()
            from shoal.blocks.kv import PAGE_TOKENS
            from shoal.peer.loading import load

            async with background(keep_announced(net.directory, lambda: self._seat(net), blocks)):
                span = await in_thread(load, self.config, self.model, blocks, self.room)
                self.engine = DeviceEngine(span, PAGE_TOKENS)
                if (limit_s := LIMITS_S.get(span.device.type)) is not None:
                    self.watchdog = Watchdog(self.engine, limit_s)
                self.throughput = await self._measure(self.engine)
            self.loading_s = asyncio.get_running_loop().time() - began
            settle()
        return self.engine

    def _seat(self, net: Net) -> Seat:
        spec, config = self.model.spec, self.config
        return Seat(
            peer_id=net.host.peer_id, addrs=net.addrs, n_blocks=spec.n_blocks,
            capacity=self.room.blocks, revision=self.model.checkpoint.revision,
            quantization=config.quantization, dtype=self.dtype, version=shoal_version(), name=config.name,
        )  # fmt: skip

    async def _measure(self, engine: DeviceEngine) -> Throughput:
        import torch

        on_gpu = self.config.device.startswith("cuda")
        device = torch.cuda.get_device_name(self.config.device) if on_gpu else platform.processor()
        facts = {
            "model": self.model.checkpoint.name, "revision": self.model.checkpoint.revision, "dtype": self.dtype,
            "blocks": str(engine.stop - engine.start), "quantization": self.config.quantization, "device": device,
            "host": platform.node(), "torch": torch.__version__, "threads": str(torch.get_num_threads()),
            "kv_dtype": self.config.kv_dtype, "vram": str(self.config.vram), "streamed": str(self.room.streamed),
            "shoal": shoal_version(), "cuda": str(torch.version.cuda),
        }  # fmt: skip
        try:
            throughput, cached = await measured(engine, self.dtype, facts, cache_folder() / "throughput")
        except EngineFault as fault:
            raise PeerError(f"{self.config.device} failed at its first forward ({fault}): {_CALMER}") from fault
        where = "measured earlier" if cached else "measured now"
        logger.info(
            "%s: one token takes %.2f ms, a prompt token %.3f ms (%s)", self.config.quantization,
            1e3 * throughput.decode_s * (engine.stop - engine.start),
            1e3 * throughput.prefill_s * (engine.stop - engine.start), where,
        )  # fmt: skip
        return throughput

    async def _serve(self, net: Net, engine: DeviceEngine) -> Move | None:
        """Until we leave, the network daemon dies, the device is lost or other blocks need this peer: then those."""
        terms = node_config(self.config, self.model, self.room, engine, net.host.peer_id, self._speed, self.duty)
        async with Node(terms, engine, net.transport) as node:
            announcer = Announcer(net.directory, node, self._facts(net))
            self.pausing.attach(node)
            self.account.attach(node)
            await announcer.announce()
            self._say_online(net.host, engine)
            move = await self._until_leaving(net, node, announcer)
            self.account.stage = "loading" if move else "leaving"
            if move is not None and not self.leave.is_set():
                if self.config.json:
                    _print({"event": "moving", "blocks": [move.start, move.stop], "why": move.reason})
                await hand_over(node, self.config.drain_s)
            elif not net.host.died.is_set():
                drain_s = 0.0 if node.broken.is_set() else self.config.drain_s
                await say_goodbye(announcer, node, drain_s, self.leave)
            return move

    async def _until_leaving(self, net: Net, node: Node, announcer: Announcer) -> Move | None:
        """Until something ends this peer's serving; where it goes, if it is needed more elsewhere."""
        from shoal.dht.reach import relays_lost

        async with asyncio.TaskGroup() as tasks:
            work = announcer.run(), announcer.follow(net.look), report(node, logger), self.pausing.run(node, announcer)
            ails = rest_after_faults(node.steps.faulted, self.pausing)
            others = warn_of_others(net.directory, net.host.peer_id, self.config, self.model.checkpoint.revision)
            chores = [tasks.create_task(part) for part in (*work, ails, others)]
            ends = [tasks.create_task(event.wait()) for event in (self.leave, net.host.died, node.broken)]
            alone = tasks.create_task(relays_lost(net.host, net.nodes))
            moving = tasks.create_task(self._move(net, announcer))
            await asyncio.wait([*ends, alone, moving], return_when=asyncio.FIRST_COMPLETED)
            for task in (*chores, *ends, alone, moving):
                task.cancel()
        return moving.result() if not moving.cancelled() else None

    async def _move(self, net: Net, announcer: Announcer) -> Move:
        """Wait until this peer should serve other blocks, and has them at hand: for ever, if it was told which to
        serve."""
        if self.config.blocks is not None or not self.config.rebalance_s:
            await asyncio.Event().wait()
        from shoal.peer.loading import fetch

        async def bring(blocks: range) -> None:
            await in_thread(fetch, self.config, self.model, blocks)

        habit = Habit(self.config.rebalance_s, self.loading_s)
        return await Mover(net.directory, announcer, self.model.spec.n_blocks, habit, bring, net.survey).run()

    @property
    def _speed(self) -> Throughput:
        if self.throughput is None:
            raise PeerError("the span was not measured")
        return self.throughput

    def _facts(self, net: Net) -> Facts:
        return Facts(
            peer_id=net.host.peer_id, revision=self.model.checkpoint.revision, quantization=self.config.quantization,
            dtype=self.dtype, decode_s=self._speed.decode_s, prefill_s=self._speed.prefill_s,
            addrs=net.addrs, version=shoal_version(), name=self.config.name, reach=net.host.reach,
        )  # fmt: skip

    def _say_online(self, host: Host, engine: DeviceEngine) -> None:
        if self.config.json:
            _print({"event": "online", "peer": host.peer_id, "blocks": [engine.start, engine.stop]})
        else:
            sys.stdout.write(f"online as {host.peer_id}, serving blocks {engine.start}:{engine.stop}\n")
            sys.stdout.flush()


def _print(event: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


_CALMER = "take fewer blocks (--num-blocks), less KV (--kv-tokens) or less of the device (--vram)"
