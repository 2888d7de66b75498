"""Quantization of a block's matrices, in place; knows bitsandbytes' formats by name, and no checkpoint or span."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

import torch
from shoal.blocks.choices import QUANTIZATIONS
from shoal.blocks.errors import QuantizationError
from shoal.blocks.kernels import has_kernels
from shoal.blocks.quantize_experts import QuantizedExperts, is_fused
from shoal.blocks.quantize_linear import FOUR_BIT_BLOCK, four_bit_linear, int8_linear
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shoal.blocks.quantize_experts import MakeLinear

SCALES_BLOCK = 256  # scales that share one scale under double quantization
_ROUTERS = frozenset({"router", "gate", "shared_expert_gate"})  # small, and a wrong expert costs far more than rounding

_log = logging.getLogger(__name__)


def check_kind(kind: str) -> None:
    """Raise QuantizationError unless `kind` is one of QUANTIZATIONS."""
    if kind not in QUANTIZATIONS:
        raise QuantizationError(f"Unknown quantization {kind!r}: choose one of {', '.join(QUANTIZATIONS)}.")


def bytes_per_param(kind: str, dtype: torch.dtype = torch.bfloat16) -> float:
    """Bytes that one weight of a matrix takes, scales included (but int8's one a row); `dtype` is that of none."""
    check_kind(kind)
    return {
        "none": float(dtype.itemsize),
        "int8": 1.0,
        "nf4": 0.5 + 1 / FOUR_BIT_BLOCK + 4 / (FOUR_BIT_BLOCK * SCALES_BLOCK),
        "fp4": 0.5 + 4 / FOUR_BIT_BLOCK,
    }[kind]


def quantize_(module: nn.Module, kind: str, device: torch.device | str, dtype: torch.dtype) -> None:
    """Move `module` to `device` and `dtype`, its linear maps quantized, for inference; loaded weights, in place.

    `kind` is one of QUANTIZATIONS: `none`; `int8`, LLM.int8() with threshold 6; `nf4` with double quantization; `fp4`.
    nn.Linear, the transposed Conv1D of GPT-2 and fused experts are quantized; biases, norms, routers and the rest stay
    in `dtype`, buffers in their own. One matrix moves at a time, so the peak is the quantized module plus one matrix.
    Where there are kernels of our own they compute, over the same data, and int8 meets activations of 16 bits.
    Raises QuantizationError for an unknown kind, weights on the meta device, or a `module` that is itself a linear map.
    """
    check_kind(kind)
    if any(parameter.is_meta for parameter in module.parameters()):
        raise QuantizationError("The weights are not loaded yet: load them before quantizing.")
    if kind != "none":
        _replace(module, kind, torch.device(device), dtype)
    _move_rest(module, torch.device(device), dtype)
    module.eval()


def _replace(module: nn.Module, kind: str, device: torch.device, dtype: torch.dtype) -> None:
    if has_kernels(device, dtype):
        from shoal.blocks.kernels.any_shape import Kernels

        kernels = Kernels(kind, device, dtype)
        replace_matrices(module, kernels.linear, kernels.experts)
    else:
        replace_matrices(module, maker(kind, device, dtype))


def maker(kind: str, device: torch.device, dtype: torch.dtype) -> MakeLinear:
    """How a matrix of a quantized kind is made: `make(weight [out, in], bias [out] or None)`."""
    return functools.partial(_MAKERS[kind], device=device, dtype=dtype)


_MAKERS: dict[str, Callable[..., nn.Module]] = {
    "int8": int8_linear,
    "nf4": functools.partial(four_bit_linear, code="nf4", double=True),
    "fp4": functools.partial(four_bit_linear, code="fp4", double=False),
}


def replace_matrices(
    module: nn.Module, make: MakeLinear, make_experts: Callable[[nn.Module], nn.Module | None] | None = None
) -> None:
    """Put `make(weight [out, in], bias [out] or None)` in place of each linear map inside, routers excepted.

    `make_experts(module)` makes what stands for a fused experts module; None: one `make` for each of their matrices.
    Raises QuantizationError for a `module` that is itself a linear map.
    """
    if _is_linear(module) or is_fused(module):
        raise QuantizationError("A linear map cannot be quantized in place: pass the module that contains it.")
    for parent, name, child in list(_children(module)):
        if is_fused(child):
            made = make_experts(child) if make_experts is not None else None
            setattr(parent, name, made or QuantizedExperts(child, make))
        elif _is_linear(child) and name not in _ROUTERS:
            setattr(parent, name, make(*_weight_and_bias(child)))
        elif any(p.dim() == 3 for p in child.parameters(recurse=False)):
            _log.warning("%s has fused weights of a kind that is not quantized: they stay in full.", name)


def _children(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in module.modules():
        for name, child in parent.named_children():
            yield parent, name, child


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D)) and not _is_quantized(module)


def _is_quantized(module: nn.Module) -> bool:
    return type(module).__module__.startswith("bitsandbytes")


def _weight_and_bias(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    weight, bias = module.weight, module.bias
    if not isinstance(weight, torch.Tensor) or not (bias is None or isinstance(bias, torch.Tensor)):
        raise QuantizationError(f"A {type(module).__name__} without a weight matrix cannot be quantized.")
    return (weight if isinstance(module, nn.Linear) else weight.T), bias


def _move_rest(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """What was not replaced; bitsandbytes' modules are where they belong, and moving them again would undo them."""
    for part in module.modules():
        if not _is_quantized(part):
            for parameter in part.parameters(recurse=False):
                parameter.data = parameter.data.to(device, dtype if parameter.is_floating_point() else None)
                parameter.requires_grad_(False)
            for name, buffer in part.named_buffers(recurse=False):
                setattr(part, name, buffer.to(device))
