"""Products of a few tokens with a large matrix on the CPU: rows side by side, rows far apart, and torch's own."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from _report import print_table, write_json
from _swarm import median, tell
from shoal.blocks.cpu.compiled import CompileError, library
from shoal.blocks.cpu.short import MOST_TOKENS, ShortLinear, declared
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTHS, TOKENS = (512, 1024, 2048, 4096), (1, 2, 4, 8, 16)
KINDS = {"float32": (torch.float32, ()), "bfloat16": (torch.bfloat16, ("-DBF16",))}
LAYOUTS = {"near": "-DFAR_ROWS=0", "far": "-DFAR_ROWS=1"}


def ways(linear: nn.Linear, options: tuple[str, ...]) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Every way to multiply with a matrix."""
    found: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        name: ShortLinear(linear, declared(library("step.c", *options, layout))) for name, layout in LAYOUTS.items()
    }
    return found | {"torch": linear}


def measure(width: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds of each way and number of tokens, one way after the other."""
    (dtype, options), figures = KINDS[arguments.dtype], dict[str, float]()
    rows = arguments.mib * (1 << 20) // (width * dtype.itemsize)
    linear = nn.Linear(width, rows, bias=False, dtype=dtype).requires_grad_(requires_grad=False)
    each = ways(linear, options)
    for tokens in TOKENS:
        given = torch.randn(tokens, width).to(dtype)
        times: dict[str, list[float]] = {name: [] for name in each}
        for _ in range(arguments.repeats):
            for name, multiply in each.items():
                began = time.perf_counter()
                multiply(given)
                times[name].append(1e3 * (time.perf_counter() - began))
        figures |= {f"{name}_ms_{width}_{tokens}": median(found) for name, found in times.items()}
        ratios = [far / near for far, near in zip(times["far"], times["near"], strict=True)]
        figures[f"far_over_near_{width}_{tokens}"] = median(ratios)
    return figures


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="scripts/bench rows", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--dtype", choices=KINDS, default="float32", help="of the matrix (default float32)")
    parser.add_argument("--mib", type=int, default=128, help="size of the matrix (default 128, more than caches hold)")
    parser.add_argument("--repeats", type=int, default=15, help="turns of each way (default 15)")
    parser.add_argument("--threads", type=int, default=1, help="that multiply (default 1)")
    arguments = parser.parse_args()
    if arguments.mib < 1 or arguments.repeats < 1 or arguments.threads < 1:
        parser.error("--mib, --repeats and --threads start at 1")
    torch.set_num_threads(arguments.threads)
    figures: dict[str, float] = {}
    try:
        with torch.inference_mode():
            for width in WIDTHS:
                tell(f"rows of {width}")
                figures |= measure(width, arguments)
    except CompileError as error:
        parser.exit(1, f"scripts/bench rows: {error}\n")
    columns = ("near_ms", "far_ms", "torch_ms", "far_over_near")
    table = [
        [f"{width} x {tokens}", *(f"{figures[f'{column}_{width}_{tokens}']:.2f}" for column in columns)]
        for width in WIDTHS for tokens in TOKENS
    ]  # fmt: skip
    print_table(["numbers of a row x tokens", "side by side, ms", "far apart, ms", "torch, ms", "far / near"], table)
    print(f"\nA matrix of {arguments.mib} MiB in {arguments.dtype}, threads: {arguments.threads}.")
    print(f"Up to {MOST_TOKENS} tokens take our C; which layout a processor gets is in blocks/cpu/matrix.h.")
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
