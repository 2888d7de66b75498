"""Looks at this machine for `shoal doctor`: programs, memory, our network daemon, the port. Joins no swarm."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from typing import TYPE_CHECKING

from shoal.client.cli.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_PYTHON = (3, 11)
LITTLE_BYTES = 2**30
GIB = 2**30


def machine(device: str) -> Iterator[Finding]:
    """Python, torch, the device and its memory."""
    yield _python()
    torch = _torch()
    yield torch
    if torch.state != "broken":
        yield from _device(device)


async def network(host: str, port: int) -> list[Finding]:
    """Whether libp2p's daemon starts here and a peer could listen where it is told to."""
    return [await _daemon(), _port(host, port)]


def _python() -> Finding:
    text = f"Python {platform.python_version()}"
    if sys.version_info < MIN_PYTHON:
        return Finding("python", "broken", text, "install Python 3.11 or newer and Shoal in it")
    return Finding("python", "ok", text)


def _torch() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", "broken", f"torch does not load: {error}", "install it anew: pip install torch")
    parts = (f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "hivemind"))
    return Finding("torch", "ok", f"torch {torch.__version__}, {', '.join(parts)}")


def _device(name: str) -> Iterator[Finding]:
    import torch
    from shoal.blocks.choices import BEST_DEVICE
    from shoal.blocks.devices import check_device, choose_device, device_memory
    from shoal.blocks.errors import UnsupportedDevice
    from shoal.blocks.kernels.toolchain import missing

    if name == BEST_DEVICE:
        chosen = choose_device()
        name = chosen.name
        if chosen.instead:
            yield Finding("gpu", "note", chosen.why, "look at the driver (nvidia-smi, dmesg), or install another torch")
    try:
        device = check_device(name)
        memory = device_memory(device)
        (torch.ones(8, device=device) * 2).sum().item()
    except UnsupportedDevice as error:
        yield Finding("device", "broken", str(error), "choose another --device, or mend its driver")
        return
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        yield Finding("device", "broken", f"{name} computes nothing: {first}", "look at the driver (nvidia-smi, dmesg)")
        return
    on_gpu = device.type == "cuda"
    label = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or device.type
    yield Finding("device", "ok", f"{name}: {label}")
    if on_gpu and (lack := missing(device)) is not None:
        yield Finding("kernels", "note", f"{name} computes through PyTorch alone, which is slower", lack)
    text = f"{memory.free / GIB:.1f} of {memory.total / GIB:.1f} GiB are free on {name}"
    if memory.free < LITTLE_BYTES:
        yield Finding("memory", "note", text, "end other programs, or serve few blocks: --num-blocks 1 --quant nf4")
    else:
        yield Finding("memory", "ok", text)


async def _daemon() -> Finding:
    from shoal.dht.errors import HostError
    from shoal.dht.host import HostConfig, open_host

    try:
        async with open_host(HostConfig()):
            return Finding("daemon", "ok", "the libp2p daemon starts")
    except HostError as error:
        advice = "see that the temporary folder may be written to, and install Shoal anew: pip install --force shoal"
        return Finding("daemon", "broken", str(error), advice)


def _port(host: str, port: int) -> Finding:
    from shoal.dht.errors import HostError
    from shoal.dht.host import check_port

    where = f"{host or '0.0.0.0'}, {f'port {port}' if port else 'any free port'}"  # noqa: S104
    try:
        check_port(host or "0.0.0.0", port)  # noqa: S104
    except HostError as error:
        return Finding("port", "broken", str(error), "choose another --port or --host")
    return Finding("port", "ok", f"a peer can listen on {where}")
