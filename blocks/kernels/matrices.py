"""Owns which module keeps a matrix's data in the form of a quantization; must not know who multiplies with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.blocks.kernels.dense import DenseMatrix
from shoal.blocks.kernels.four_bit import FourBitMatrix
from shoal.blocks.kernels.int8 import Int8Matrix

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

Matrix = DenseMatrix | FourBitMatrix | Int8Matrix


def matrix_of(pieces: Iterable[torch.Tensor], kind: str, device: torch.device, dtype: torch.dtype) -> Matrix:
    """`pieces` [N, K] one below the other as one matrix of `kind` (one of blocks.choices.QUANTIZATIONS), quantized one
    at a time, so that no more than one of them is on the device in `dtype`."""
    if kind == "none":
        return DenseMatrix(pieces, device, dtype)
    if kind == "int8":
        return Int8Matrix(pieces, device)
    return FourBitMatrix(pieces, kind, device, dtype)
