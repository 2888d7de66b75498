"""Owns our own GPU kernels, written in Triton; must not know families, checkpoints or leases.

Its modules need Triton: import them only where `has_kernels` says yes.
"""

from __future__ import annotations

import functools
import logging

import torch
from shoal.blocks.kernels.toolchain import has_triton, missing

__all__ = ["has_kernels", "has_triton"]
_log = logging.getLogger(__name__)


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether our own kernels compute `dtype` on a device: 16 bits, on CUDA or ROCm, where Triton can work."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    if (why := missing(device)) is None:
        return True
    _tell(why)
    return False


@functools.cache
def _tell(why: str) -> None:
    """Once, however often it is asked."""
    _log.warning("This GPU computes through PyTorch alone, which is slower: %s.", why)
