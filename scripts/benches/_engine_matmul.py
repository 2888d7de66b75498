"""One matrix of the 70B shape in the engine's benchmark: our kernels over 4-bit and 8-bit weights against 16 bit."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import torch
from _engine_models import Bench, Figures, Skipped, release, tell
from _engine_time import graphed
from shoal.blocks.makers import makers_for
from torch.nn.functional import linear

ROWS = (1, 2, 4, 8, 16, 32, 64)
OUT, IN = 28672, 8192
COPIES = 3  # more bytes than the L2 cache holds: each call reads its weights from memory
CALLS = 12

Product = Callable[[torch.Tensor], torch.Tensor]


def matmul(bench: Bench) -> Figures:
    """Milliseconds of `[rows, 8192] x [8192, 28672]`, by the modules that hold a span's matrices on the device, and the
    ratio to bf16's: `mm70b_nf4_ratio_ROWS`."""
    if bench.device.type != "cuda" and not bench.tiny:
        raise Skipped("the kernels are written for CUDA devices")
    out, width = bench.size(OUT, 512), bench.size(IN, 256)
    weights = [_weight(bench, out, width, seed) for seed in range(COPIES)]
    products: dict[str, Sequence[Product]] = {"bf16": [_plain(weight) for weight in weights]}
    for kind in ("nf4", "int8", "none"):
        tell(f"  {kind} ...")
        make = makers_for(kind, bench.device, bench.dtype).plain
        products[kind] = [make(weight.cpu(), None) for weight in weights]
    products |= _bitsandbytes(bench, weights)
    found: Figures = {}
    for rows in ROWS:
        x = torch.randn(rows, width, device=bench.device, dtype=bench.dtype)
        times = {name: _ms(group, x, bench.device) for name, group in products.items()}
        found |= {f"mm70b_{name}_ms_{rows}": ms for name, ms in times.items()}
        found |= {f"mm70b_{name}_ratio_{rows}": ms / times["bf16"] for name, ms in times.items() if name != "bf16"}
    found |= _errors(products, weights[0], bench.device)
    release(bench.device)
    return found


def _weight(bench: Bench, out: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator(bench.device).manual_seed(seed)
    return (torch.randn(out, width, generator=generator, device=bench.device) * 1.28 * width**-0.5).to(bench.dtype)


def _plain(weight: torch.Tensor) -> Product:
    return lambda x: linear(x, weight)


def _bitsandbytes(bench: Bench, weights: Sequence[torch.Tensor]) -> dict[str, Sequence[Product]]:
    """What the library itself makes of its 4-bit weights."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return {}
    from shoal.blocks.quantize_linear import four_bit_linear

    return {
        "bitsandbytes_nf4": [
            four_bit_linear(weight, None, bench.device, bench.dtype, "nf4", double=True) for weight in weights
        ]
    }


@torch.inference_mode()
def _ms(group: Sequence[Product], x: torch.Tensor, device: torch.device) -> float:
    """Milliseconds a product, the copies of the weights taken in turn."""

    def work() -> None:
        for call in range(CALLS):
            group[call % len(group)](x)

    return graphed(work, device) / CALLS


@torch.inference_mode()
def _errors(products: dict[str, Sequence[Product]], weight: torch.Tensor, device: torch.device) -> Figures:
    """Relative error of 8 fresh rows against fp32 of the unquantized weights."""
    x = torch.randn(8, weight.shape[1], device=device, dtype=weight.dtype)
    exact = linear(x.float(), weight.float())
    return {
        f"mm70b_{name}_error": float((group[0](x).float() - exact).norm() / exact.norm())
        for name, group in products.items()
    }
