"""The engine against the hardware and against what runs beside it: decode, batching, prefixes, memory, errors."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Name of a part -> the module and function that measure it. The order is that of running: what may hang comes last.
GPU_PARTS = {
    "floors": ("_engine_decode", "floors"),
    "matmul": ("_engine_matmul", "matmul"),
    "attention": ("_engine_attention", "attention"),
    "decode": ("_engine_decode", "decode"),
    "errors": ("_engine_errors", "errors"),
    "mixed": ("_engine_decode", "mixed"),
    "generic": ("_engine_generic", "generic"),
    "experts": ("_engine_experts", "experts"),
    "requests": ("_engine_load", "requests"),
    "stall": ("_engine_stall", "stall"),
    "prefix": ("_engine_node", "prefix"),
    "node": ("_engine_node", "node"),
    "process": ("_engine_host", "process"),
    "deep": ("_engine_decode", "deep"),
    "wide": ("_engine_decode", "wide"),
    "eager": ("_engine_hf", "eager"),
    "batching": ("_engine_hf", "batching"),
}
CPU_PARTS = {
    "speed": ("_engine_cpu", "speed"),
    "perplexity": ("_engine_cpu", "perplexity"),
    "errors": ("_engine_errors", "errors"),
    "idle": ("_engine_host", "idle"),
}


def main(argv: Sequence[str]) -> int:
    """0 if all parts ran; 1 if one failed or there was no time for it. Goals that are missed are named, no failure."""
    options = _parser().parse_args(argv)
    parts = GPU_PARTS if options.gpu else CPU_PARTS
    chosen = options.only.split(",") if options.only else list(parts)
    if unknown := [name for name in chosen if name not in parts]:
        print(f"bench engine: no part is named {unknown[0]}: choose of {','.join(parts)}", file=sys.stderr)
        return 2
    running = importlib.import_module("_engine_run")  # with torch, which takes seconds
    status: int = running.measure({name: parts[name] for name in chosen}, options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench engine", description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="the CUDA device's parts instead of the CPU's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as one JSON object")
    parser.add_argument("--only", metavar="PART,...", help=f"of {','.join(GPU_PARTS)}; CPU: {','.join(CPU_PARTS)}")
    parser.add_argument(
        "--tiny", action="store_true", help="small shapes and few steps: tries the parts, measures nothing"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--seconds", type=float, default=500.0, help="start no part after this (default 500)")
    return parser


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        os._exit(status)  # a run of transformers that hangs would hold the exit up
    sys.exit(status)
