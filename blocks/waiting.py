"""Owns how OpenMP's threads in a process of ours wait for one another; must not import torch."""

from __future__ import annotations

import os

# Looks of a thread at what it waits for, before it sleeps: some 0.2 ms. By itself libgomp takes 300,000, and keeps the
# processor that on a busy machine the other thread needs.
LOOKS = "10000"


def wait_briefly() -> None:
    """Have torch's threads not wait for long with a processor in hand, unless the user says how they wait. Before torch
    is imported: its OpenMP reads the environment when it is loaded."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", LOOKS)
