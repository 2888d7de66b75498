"""One weight matrix in bitsandbytes' formats, as a module that computes with it; knows no blocks and no kinds' names.

LLM.int8() is Dettmers et al., arXiv 2208.07339; 4-bit blocks of 64 and double quantization are QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from torch.nn import functional

INT8_THRESHOLD = 6.0  # activations this large keep 16 bits (section 3.2 of the paper)
FOUR_BIT_BLOCK = 64  # weights that share one scale
_PACKED_ROWS = 32  # of a matrix that bitsandbytes packs for a processor with AVX-512 go together


def int8_linear(
    weight: torch.Tensor, bias: torch.Tensor | None, device: torch.device | str, dtype: torch.dtype
) -> nn.Module:
    """A linear map of `weight` [out, in] in LLM.int8(): int8 rows, 16-bit columns for outlying activations.

    Which columns are outliers is decided over all tokens of a call, so a token's result may differ slightly with the
    tokens beside it. Weights and activations go through float16, as the format demands.
    """
    bnb = _bitsandbytes()
    module = bnb.nn.Linear8bitLt(
        weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False, threshold=INT8_THRESHOLD, device="meta"
    )
    module.weight = bnb.nn.Int8Params(_on_cpu(weight), requires_grad=False, has_fp16_weights=False).to(device)
    return _finish(module, bias, device, dtype)


def four_bit_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    device: torch.device | str,
    dtype: torch.dtype,
    code: str,
    *,
    double: bool,
) -> nn.Module:
    """A linear map of `weight` [out, in] in 4 bits of `code` (nf4, fp4); `double` quantizes the scales as well."""
    if torch.device(device).type == "cpu" and not _suits_cpu(*weight.shape):
        return _finish(UnfoldedLinear(weight, dtype, code, double=double), bias, device, dtype)
    bnb = _bitsandbytes()
    module = bnb.nn.Linear4bit(
        weight.shape[1],
        weight.shape[0],
        bias=False,
        compute_dtype=dtype,
        compress_statistics=double,
        quant_type=code,
        device="meta",
    )
    params = bnb.nn.Params4bit(
        _on_cpu(weight).to(dtype), requires_grad=False, compress_statistics=double, quant_type=code, module=module
    )
    module.weight = params.to(device)
    return _finish(module, bias, device, dtype)


class UnfoldedLinear(nn.Module):
    """A linear map `[..., in] -> [..., out]` on a CPU whose four-bit weight is made `dtype` again for every call.

    For shapes that bitsandbytes' own module cannot do: with AVX-512 and bfloat16 it packs matrices of whole groups of
    rows alone, and fails on others at the first call; with AVX-512 it takes rows that are no whole blocks to have whole
    blocks' scales, and gives wrong weights. So the weights are kept one block a row: right wherever blocks end.
    """

    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, dtype: torch.dtype, code: str, *, double: bool) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        values = _on_cpu(weight).to(dtype).flatten()
        blocks = functional.pad(values, (0, -len(values) % FOUR_BIT_BLOCK)).view(-1, FOUR_BIT_BLOCK)
        packed, self.quant_state = _bitsandbytes().functional.quantize_4bit(
            blocks, blocksize=FOUR_BIT_BLOCK, compress_statistics=double, quant_type=code
        )
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`hidden @ weight.T + bias`, computed in the weight's own type, in that of `hidden`."""
        blocks = _bitsandbytes().functional.dequantize_4bit(self.weight, self.quant_state)
        weight = blocks.flatten()[: self.out_features * self.in_features].view(self.out_features, self.in_features)
        return functional.linear(hidden.to(weight.dtype), weight, self.bias).to(hidden.dtype)


def _suits_cpu(rows: int, columns: int) -> bool:
    return rows % _PACKED_ROWS == 0 and columns % FOUR_BIT_BLOCK == 0


def _finish(module: nn.Module, bias: torch.Tensor | None, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().to(device, dtype), requires_grad=False)
    return module.eval()


def _on_cpu(weight: torch.Tensor) -> torch.Tensor:
    """bitsandbytes quantizes on the way from the CPU to a device, and only then."""
    return weight.detach().cpu().contiguous()


def _bitsandbytes() -> Any:
    """The library, without what it logs at every int8 call with inputs not in float16, and once without a GPU."""
    for name in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
        logger = logging.getLogger(name)
        if _is_news not in logger.filters:
            logger.addFilter(_is_news)
    import bitsandbytes

    return bitsandbytes


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("MatMul8bitLt: inputs will be cast", "Failed to load CPU gemm_4bit"))
