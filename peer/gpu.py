"""One NVIDIA GPU as its driver's management library (NVML) knows it: who uses it, its power, its power limit.

Thin: every figure is asked for when it is wanted; what this GPU or this user cannot have is None or `GpuError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.peer.config import PeerError

if TYPE_CHECKING:
    from collections.abc import Callable


class GpuError(PeerError):
    """The driver refuses; `denied` if only for want of rights."""

    def __init__(self, message: str, *, denied: bool = False) -> None:
        super().__init__(message)
        self.denied = denied


def open_gpu(device: str) -> Gpu | None:
    """The GPU behind a torch device; None if it is no NVIDIA one, or nothing here can ask its driver."""
    if not device.startswith("cuda"):
        return None
    import torch

    index = torch.device(device).index
    uuid = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index).uuid
    return gpu_of(f"GPU-{uuid}")


def gpu_of(uuid: str) -> Gpu | None:
    """The GPU with this UUID; None as for `open_gpu`."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return Gpu(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid), uuid)
    except pynvml.NVMLError:
        return None


class Gpu:
    """Powers are watts, energy joules, shares between 0 and 1."""

    def __init__(self, nvml: Any, handle: Any, uuid: str) -> None:
        self.uuid = uuid
        self._nvml, self._handle = nvml, handle
        self._seen_us = 0  # the driver's time of the newest sample that we know

    def used_by_others(self, own: set[int], own_share: float) -> float | None:
        """What other processes have used of the GPU since the last call. Where the driver does not tell processes
        apart (in a container ours is not even named as we know it), what is used beyond `own_share`, our own part."""
        shares = self._shares()
        if shares is not None and own & self._processes():
            return min(1.0, sum(share for pid, share in shares.items() if pid not in own))
        rates = self._ask(self._nvml.nvmlDeviceGetUtilizationRates)
        return None if rates is None else max(0.0, rates.gpu / 100 - own_share)

    def energy_j(self) -> float | None:
        """Used since the driver was loaded."""
        energy_mj = self._ask(self._nvml.nvmlDeviceGetTotalEnergyConsumption)
        return None if energy_mj is None else energy_mj / 1000

    def power_w(self) -> float | None:
        """Drawn now, or on average over the last second: that depends on the GPU."""
        power_mw = self._ask(self._nvml.nvmlDeviceGetPowerUsage)
        return None if power_mw is None else power_mw / 1000

    def limit_w(self) -> float | None:
        """The driver's present power limit."""
        limit_mw = self._ask(self._nvml.nvmlDeviceGetPowerManagementLimit)
        return None if limit_mw is None else limit_mw / 1000

    def range_w(self) -> tuple[float, float] | None:
        """The limits that the driver accepts."""
        bounds = self._ask(self._nvml.nvmlDeviceGetPowerManagementLimitConstraints)
        return None if bounds is None else (bounds[0] / 1000, bounds[1] / 1000)

    def set_limit(self, watts: float) -> None:
        """Let the driver hold the GPU under so much power. Errors: `GpuError`."""
        try:
            self._nvml.nvmlDeviceSetPowerManagementLimit(self._handle, round(watts * 1000))
        except self._nvml.NVMLError as error:
            raise GpuError(str(error), denied=error.value == self._nvml.NVML_ERROR_NO_PERMISSION) from error

    def _shares(self) -> dict[int, float] | None:
        """What each process has used since the last call; None where the driver does not say."""
        try:
            samples = self._nvml.nvmlDeviceGetProcessUtilization(self._handle, self._seen_us)
        except self._nvml.NVMLError as error:
            quiet = error.value in (self._nvml.NVML_SUCCESS, self._nvml.NVML_ERROR_NOT_FOUND)  # no sample since
            return {} if quiet else None
        shares: dict[int, float] = {}
        for sample in samples:
            self._seen_us = max(self._seen_us, sample.timeStamp)
            most = min(100, max(sample.smUtil, sample.encUtil, sample.decUtil))
            shares[sample.pid] = max(shares.get(sample.pid, 0.0), most / 100)
        return shares

    def _processes(self) -> set[int]:
        return {process.pid for process in self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses) or ()}

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        try:
            return question(self._handle)
        except self._nvml.NVMLError:
            return None
