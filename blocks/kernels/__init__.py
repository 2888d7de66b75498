"""Owns our own GPU kernels, written in Triton; must not know families, checkpoints or leases.

Its modules need Triton: import them only for a CUDA (or ROCm) device, after `has_triton()` said yes.
"""

from __future__ import annotations

import importlib.util


def has_triton() -> bool:
    """Whether Triton is installed, without importing it."""
    return importlib.util.find_spec("triton") is not None
