"""Host memory of an idle peer, in the engine's benchmark: the process that serves, less its weights."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
from _engine_models import Bench, Figures, Skipped
from shoal.blocks.checkpoint import resolve
from shoal.blocks.spec import spec_of

SETTLE_S = 3.0
PROCESS_TIMEOUT_S = 120.0


def idle(bench: Bench) -> Figures:
    """MB that `shoal peer` with the whole demo model holds when it is online and nobody asks: resident memory of its
    process and of its network daemon. Its weights, in fp32, are told apart."""
    try:
        from shoal.client.cli.children import Children
        from shoal.dht.host import Host  # noqa: F401  what a peer's network needs
    except ImportError as error:
        raise Skipped(f"a peer cannot run here: {error}") from error

    async def go() -> float:
        with tempfile.TemporaryDirectory() as folder:
            async with Children({"HOME": folder}) as children:
                node = await children.start("bootstrap", ["bootstrap", "--json", "--model", "demo"])
                invite = str((await node.event("invite"))["invite"])
                known = _offspring()
                command = [
                    "peer",
                    "--model",
                    "demo",
                    "--join",
                    invite,
                    "--json",
                    "--dtype",
                    "float32",
                    "--kv-tokens",
                    "8192",
                ]
                peer = await children.start("peer", [*command, *_device(bench)])
                await peer.event("event", "online")
                await asyncio.sleep(SETTLE_S)
                return sum(psutil.Process(pid).memory_info().rss for pid in _offspring() - known) / 1e6

    resident_mb = asyncio.run(go())
    weights_mb = _weights_mb() if bench.device.type == "cpu" else 0.0
    return {
        "idle_peer_rss_mb": resident_mb,
        "idle_peer_weights_mb": weights_mb,
        "idle_peer_beyond_weights_mb": resident_mb - weights_mb,
    }


def process(bench: Bench) -> Figures:
    """MB of host memory of a process that serves 8 blocks from the device, after a prompt and with nothing to do: its
    node and device thread; without the network's daemon, which `idle` counts on a CPU."""
    script = Path(__file__).with_name("_engine_process.py")
    command = [sys.executable, str(script), str(bench.device), *(["--tiny"] if bench.tiny else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=PROCESS_TIMEOUT_S)
    found: Figures = json.loads(done.stdout)
    return found


def _device(bench: Bench) -> list[str]:
    return ["--device", bench.device.type]


def _offspring() -> set[int]:
    """Process ids below this one."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def _weights_mb() -> float:
    """The demo model's blocks in fp32."""
    checkpoint = resolve("demo")
    names = [
        name
        for index in range(spec_of(checkpoint).n_blocks)
        for name in spec_of(checkpoint).family.block_tensors(checkpoint.tensor_names(), index)
    ]
    return sum(tensor.numel() * 4 for tensor in checkpoint.read(names).values()) / 1e6
