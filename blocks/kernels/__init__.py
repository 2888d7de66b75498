"""Owns our own GPU kernels, written in Triton; must not know families, checkpoints or leases.

Its modules need Triton: import them only where `has_kernels` says yes.
"""

from __future__ import annotations

import importlib.util

import torch


def has_triton() -> bool:
    """Whether Triton is installed, without importing it."""
    return importlib.util.find_spec("triton") is not None


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether our own kernels compute `dtype` on a device: 16 bits, on CUDA or ROCm, with Triton installed."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and has_triton()
