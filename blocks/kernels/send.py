"""Owns the way of a step's results to page-locked host memory, as one kernel; must not know what they mean.

Copies of rows and of a sum that says whether all are finite would be a kernel or two and two works of the copy engine,
each with some microseconds of waiting around it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    import torch


@triton.jit(do_not_specialize=["words"])
def _send(
    result_ptr,
    sent_ptr,
    places_ptr,
    rows_ptr,
    finite_ptr,
    words,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    place = tl.load(places_ptr + row).to(tl.int64)
    found = tl.load(result_ptr + row * WIDTH + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    tl.store(finite_ptr + row, tl.min((tl.abs(found) < float("inf")).to(tl.int32), 0))
    if place >= 0:
        keep = at < words
        tl.store(rows_ptr + place * words + at, tl.load(sent_ptr + row * words + at, mask=keep), mask=keep)


def send(
    result: torch.Tensor, sent: torch.Tensor, places: torch.Tensor, rows: torch.Tensor, finite: torch.Tensor
) -> None:
    """Write each row of `sent` [T, bytes / 2] int16 whose place is not negative to that row of `rows` [.., bytes / 2],
    and to `finite` [T] int32 whether all numbers of a row of `result` [T, H] are: 1 or 0.

    Both come contiguous from the device; places [T] int32, `rows` and `finite` lie in page-locked host memory.
    """
    tokens, width = result.shape
    block = triton.next_power_of_2(max(width, sent.shape[1]))  # rows of float32 are longer than 16-bit results
    _send[(tokens,)](
        result,
        sent,
        places,
        rows,
        finite,
        sent.shape[1],
        WIDTH=width,
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
    )
