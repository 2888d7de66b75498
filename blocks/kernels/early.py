"""Owns kernels that are launched before the one ahead of them has ended; must not know what they compute.

On NVIDIA GPUs from compute capability 9.0 on ("programmatic dependent launch"), a kernel's programs may take their
places while the last ones of the kernel ahead still run. Each waits at its beginning until that kernel has ended and
what it wrote can be seen; only then does it let the next one come, so that at most two are under way.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def wait_for_inputs(EARLY: tl.constexpr):
    """The first thing that a kernel does which is launched with `early(device)`."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@functools.cache
def early(device: torch.device, wanted: bool) -> dict[str, Any]:
    """A launch's options and the kernel's EARLY, where it is `wanted` and the device is able to."""
    if not wanted or device.type != "cuda" or torch.version.hip is not None or not hasattr(tl.extra.cuda, "gdc_wait"):
        return {"EARLY": False}
    able = torch.cuda.get_device_capability(device) >= (9, 0)
    return {"EARLY": True, "launch_pdl": True} if able else {"EARLY": False}
