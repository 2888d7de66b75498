"""A prompt's tensor cut into steps, and answers' bytes as tensors. Knows no session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from shoal.blocks.activations import unpack, view_bytes
from shoal.peer.wire import Want

if TYPE_CHECKING:
    from shoal.client.actions import SessionTerms
    from shoal.peer.wire import Buffer


def cut(hidden: torch.Tensor, want: Want, size: int) -> list[tuple[torch.Tensor, Want]]:
    """Cut a prompt [T, hidden] into steps of `size` tokens; of one whose last state alone is wanted, only the last
    chunk is answered."""
    pieces = torch.split(hidden, size)
    inner = Want.ALL if want is Want.ALL else Want.NONE
    return [(piece, want if piece is pieces[-1] else inner) for piece in pieces]


def received(rows: int, payload: Buffer, terms: SessionTerms, dtype: torch.dtype) -> torch.Tensor:
    """An answer's states [rows, hidden]; floats are laid over the received bytes without a copy."""
    if not rows:
        return torch.empty(0, terms.width, dtype=dtype)
    return unpack(view_bytes(payload, terms.dtype, terms.width), terms.dtype, terms.width).to(dtype)
