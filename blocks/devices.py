"""Which devices Shoal computes on and how much memory each has free now; knows no models.

ROCm builds of torch call their devices `cuda`, and are served under that name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from shoal.blocks.errors import UnsupportedDevice

_KINDS = ("cpu", "cuda", "mps")
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a device: `free` for a new user now, of `total`."""

    free: int
    total: int


@dataclass(frozen=True, slots=True)
class Choice:
    """A device by its name, and why it is this one; `instead`: of a better one that is there and does not work."""

    name: str
    why: str
    instead: bool = False


def choose_device() -> Choice:
    """The best device of this machine that computes."""
    faults = []
    for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        fault = _fault(torch.device(name)) if there else ""
        if fault is None:
            seen = torch.cuda.get_device_name() if name == "cuda" else "a Metal GPU"
            return Choice(name, f"torch sees {seen} (--device cpu leaves it alone)")
        faults += [f"{name} computes nothing ({fault})"] if there else []
    if faults:
        return Choice("cpu", "; ".join(faults), instead=True)
    built = torch.version.cuda or torch.version.hip or torch.backends.mps.is_built()
    return Choice("cpu", "torch sees no GPU" if built else "this torch is built for CPUs alone")


def _fault(device: torch.device) -> str | None:
    """Why a device computes nothing, in a line: a driver may list cards for which this torch has no code."""
    try:
        (torch.ones(8, device=device) * 2).sum().item()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None


def check_device(name: str) -> torch.device:
    """The device of that name; raises UnsupportedDevice if Shoal does not serve it or this machine has none."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in _KINDS:
        raise UnsupportedDevice(f"{name!r} is no device that Shoal computes on: use auto, cpu, cuda, cuda:1 or mps")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UnsupportedDevice(f"this machine has no device {name}: torch sees {count} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UnsupportedDevice(f"this machine has no device {name}: torch sees no Metal GPU")
    return device


def device_memory(device: torch.device) -> Memory:
    """Free and total memory of a device; of a CPU, the machine's or the container's, whichever is less."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Memory(free, total)
    host = host_memory()
    if device.type == "mps":
        # Metal shares the machine's memory and recommends a bound on what one process should take of it.
        total = int(torch.mps.recommended_max_memory())
        taken = int(torch.mps.driver_allocated_memory())
        return Memory(max(0, min(host.free, total - taken)), total)
    return host


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a device's memory ran out. torch's allocator has a type for it; the driver, whose own memory graphs and
    kernels take, says it in words, which reach us by several libraries."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


def host_memory() -> Memory:
    """What this process may still take of the machine's memory, the limits of its control groups respected."""
    system = psutil.virtual_memory()
    memory = Memory(int(system.available), int(system.total))
    for limit in _limits():
        memory = Memory(min(memory.free, limit.free), min(memory.total, limit.total))
    return memory


def _limits() -> list[Memory]:
    """One for each control group above this process that sets a limit."""
    return [found for folder, names in _groups() if (found := _limit(folder, *names)) is not None]


_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def _groups() -> list[tuple[Path, tuple[str, str, str]]]:
    """The folders of this process's memory groups and of those around them, with the names of their files.

    Inside a container the path in /proc may be the host's; then its folder is absent and the mount's root is ours.
    """
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = CGROUPS, _V2
        elif "memory" in controllers.split(","):
            root, names = CGROUPS / "memory", _V1
        else:
            continue
        folder = root / path.lstrip("/")
        around = [above for above in (folder, *folder.parents) if above.is_relative_to(root)]
        found += [(above, names) for above in around]
    return found


def _limit(folder: Path, limit: str, usage: str, idle: str) -> Memory | None:
    """None where nothing limits it; file pages that the kernel may drop count as free."""
    try:
        text = (folder / limit).read_text().strip()
        used = int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        if text == "max":
            return None
        total = int(text)
        return Memory(max(0, total - used + int(stat.get(idle, 0))), total)
    except (OSError, ValueError):
        return None


def compute_on(device: torch.device) -> None:
    """Make a CUDA device this thread's own: Triton's kernels and graphs run on the thread's, wherever their tensors
    are."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
