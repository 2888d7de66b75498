"""Hidden states to bytes and back, in each form in which they travel (`formats`). Pure functions over tensors.

Blockwise int8 as of Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (ICLR 2022), with even steps: the
largest number of a block of `BLOCK` has the value 127. Scales are bfloat16, rounded up, which has float32's range; an
error is at most half a scale, 0.4 % of the block's largest number. Rows do not depend on one another, and equal rows
give equal bytes. A block with a number that is not finite comes back as NaN, all of it.
"""

from __future__ import annotations

import torch
from shoal.blocks.formats import BLOCK, SCALE_BYTES, row_bytes, scales
from torch.nn.functional import pad

_BF16_BITS = 16  # of a float32 that a bfloat16 leaves out


def pack(rows: torch.Tensor, form: str) -> torch.Tensor:
    """`rows` [T, width] of any float type in the form in which they travel: [T, width] of that type, or for int8
    [T, row_bytes] of uint8; on the same device."""
    if form != "int8":
        return rows.to(getattr(torch, form))
    width, count = rows.shape[1], scales(rows.shape[1])
    blocks = pad(rows.to(torch.float32), (0, count * BLOCK - width)).view(len(rows), count, BLOCK)
    scale = _scale_up(blocks.abs().amax(-1) / 127)
    by = scale.to(torch.float32).unsqueeze(-1)
    numbers = torch.where(by > 0, blocks / by, torch.zeros_like(blocks)).round_().to(torch.int8)
    numbers = numbers.view(len(rows), count * BLOCK)[:, :width]
    return torch.cat([scale.view(torch.uint8).view(len(rows), SCALE_BYTES * count), numbers.view(torch.uint8)], dim=1)


def unpack(packed: torch.Tensor, form: str, width: int) -> torch.Tensor:
    """What `pack` made, as floats [T, width]: of the form's own type, or float32 for int8."""
    if form != "int8":
        return packed
    cut = SCALE_BYTES * scales(width)
    scale = packed[:, :cut].reshape(-1).view(torch.bfloat16).view(len(packed), scales(width)).to(torch.float32)
    numbers = packed[:, cut:].view(torch.int8).to(torch.float32)
    return numbers * scale.repeat_interleave(BLOCK, dim=1)[:, :width]


def view_bytes(payload: bytes | bytearray | memoryview, form: str, width: int) -> torch.Tensor:
    """Received bytes as a tensor for `unpack`, laid over them without a copy. Errors: `ValueError` if they are no whole
    number of rows."""
    size = row_bytes(form, width)
    if memoryview(payload).nbytes % size:
        raise ValueError(f"{memoryview(payload).nbytes} bytes are no rows of {size}")
    kind = torch.uint8 if form == "int8" else getattr(torch, form)
    if not memoryview(payload).nbytes:
        return torch.empty(0, size if form == "int8" else width, dtype=kind)
    return torch.frombuffer(payload, dtype=kind).view(-1, size if form == "int8" else width)


def to_bytes(packed: torch.Tensor) -> memoryview:
    """The memory of a packed tensor on the host, without a copy."""
    if not packed.numel():
        return memoryview(b"")
    return packed.contiguous().view(torch.uint8).numpy().data.cast("B")


def _scale_up(exact: torch.Tensor) -> torch.Tensor:
    """The next bfloat16 at or above each float32 (>= 0); infinity and NaN become NaN."""
    bits = exact.contiguous().view(torch.int32)
    up = ((bits + (1 << _BF16_BITS) - 1) >> _BF16_BITS).to(torch.int16).view(torch.bfloat16)
    return torch.where(exact.isfinite() & up.isfinite(), up, torch.full_like(up, torch.nan))
