"""Host memory of an idle peer, in the engine's benchmark: the whole of `shoal peer`, less its weights."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from _engine_models import Bench, Figures, Skipped
from _loop import run
from shoal.blocks.checkpoint import resolve
from shoal.blocks.spec import spec_of

if TYPE_CHECKING:
    from shoal.client.cli.children import Child

START_S, SETTLE_S = 120.0, 3.0
PEER = ("peer", "--model", "demo", "--json", "--kv-tokens", "8192")
KERNELS = (".cache/shoal/kernels", ".triton")  # in a user's home: what a GPU's second start finds made


@dataclass(frozen=True)
class Held:
    """MB that a peer holds: resident memory of its process and of its network daemon, and both without the parts that
    other processes share, of each its share. The latter takes from a peer on a GPU what this benchmark has mapped too:
    CUDA's libraries and torch's."""

    process_mb: float
    daemon_mb: float
    share_mb: float

    @property
    def resident_mb(self) -> float:
        """Of both."""
        return self.process_mb + self.daemon_mb


def idle(bench: Bench) -> Figures:
    """MB that `shoal peer` with the whole demo model in fp32 holds when it is online and nobody asks; its weights are
    told apart."""
    held, weights_mb = _held(bench, "float32"), _weights_mb()
    return {
        "idle_peer_rss_mb": held.resident_mb,
        "idle_peer_weights_mb": weights_mb,
        "idle_peer_beyond_weights_mb": held.resident_mb - weights_mb,
    }


def process(bench: Bench) -> Figures:
    """The same in 16 bits from a GPU, whose memory has the weights. Other devices' weights are taken off."""
    held = _held(bench, "bfloat16")
    weights_mb = 0.0 if bench.device.type == "cuda" else _weights_mb() / 2
    return {
        "idle_process_rss_mb": held.resident_mb - weights_mb,
        "idle_process_pss_mb": held.share_mb - weights_mb,
        "idle_process_daemon_mb": held.daemon_mb,
    }


def _held(bench: Bench, dtype: str) -> Held:
    """By a peer in a swarm of its own, some seconds after it has come online."""
    try:
        from shoal.client.cli.children import Children
        from shoal.dht.host import Host  # noqa: F401  what a peer's network needs
    except ImportError as error:
        raise Skipped(f"a peer cannot run here: {error}") from error
    found: list[Held] = []

    async def go() -> None:
        with tempfile.TemporaryDirectory() as folder:
            _share_kernels(Path(folder))
            async with Children({"HOME": folder}) as children, asyncio.timeout(START_S):
                node = await children.start("bootstrap", ["bootstrap", "--json", "--model", "demo"])
                invite = str((await node.event("invite"))["invite"])
                how = ["--join", invite, "--device", bench.device.type, "--dtype", dtype]
                peer = await children.start("peer", [*PEER, *how])
                await peer.event("event", "online")
                await asyncio.sleep(SETTLE_S)
                found.append(_memory(peer))

    run(go())
    return found[0]


def _share_kernels(home: Path) -> None:
    """Let a peer with a home of its own find the kernels that were made here before it."""
    for name in KERNELS:
        if (Path.home() / name).is_dir():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).symlink_to(Path.home() / name)


def _memory(peer: Child) -> Held:
    process = psutil.Process(peer.pid)
    own, *others = (each.memory_full_info() for each in (process, *process.children(recursive=True)))
    if not others:
        raise RuntimeError("the peer runs without its network daemon")
    share = sum(getattr(each, "pss", each.rss) for each in (own, *others))
    return Held(own.rss / 1e6, sum(each.rss for each in others) / 1e6, share / 1e6)


def _weights_mb() -> float:
    """The demo model's blocks in fp32."""
    checkpoint = resolve("demo")
    names = [
        name
        for index in range(spec_of(checkpoint).n_blocks)
        for name in spec_of(checkpoint).family.block_tensors(checkpoint.tensor_names(), index)
    ]
    return sum(tensor.numel() * 4 for tensor in checkpoint.read(names).values()) / 1e6
