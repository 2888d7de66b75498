"""Owns a step's inputs' way from page-locked host memory to the device, as one kernel; must not know what they mean.

The copy engine would take a copy for each of them, and some microseconds of waiting for the other engine around each.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024  # integers a program: four kilobytes


@triton.jit
def _copied(source_ptr, target_ptr, first, count, BLOCK: tl.constexpr):
    at = first + tl.arange(0, BLOCK)
    keep = at < count
    tl.store(target_ptr + at, tl.load(source_ptr + at, mask=keep), mask=keep)


@triton.jit(do_not_specialize=["n_numbers", "n_states", "number_blocks"])
def _fetch(
    numbers_ptr,
    states_ptr,
    numbers_to_ptr,
    states_to_ptr,
    arrived_ptr,
    told_ptr,
    n_numbers,
    n_states,
    number_blocks,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0)
    if block < number_blocks:
        _copied(numbers_ptr, numbers_to_ptr, block * BLOCK, n_numbers, BLOCK)
    else:
        _copied(states_ptr, states_to_ptr, (block - number_blocks) * BLOCK, n_states, BLOCK)
    tl.debug_barrier()  # all of this program's numbers have come
    if tl.atomic_add(arrived_ptr, 1) == tl.num_programs(0) - 1:
        tl.store(told_ptr, tl.load(numbers_ptr + n_numbers - 1))
        tl.store(arrived_ptr, 0)


def fetch(
    numbers: torch.Tensor,
    numbers_to: torch.Tensor,
    states: torch.Tensor | None,
    states_to: torch.Tensor,
    arrived: torch.Tensor,
    told: torch.Tensor,
) -> None:
    """Copy `numbers` [n] int32, and `states` [T, H] of 16 bits each if given, from host memory into `numbers_to` and
    `states_to`; then the last of the numbers into `told` [1] int32, on the host: what was fetched may be overwritten.

    Host memory is page-locked. arrived: [1] int32 on the device, zero, for this kernel alone. An odd number of states
    is not possible.
    """
    source = numbers if states is None else states.view(torch.int32)
    n_states = 0 if states is None else source.numel()
    number_blocks = triton.cdiv(numbers.numel(), _BLOCK)
    _fetch[(number_blocks + triton.cdiv(n_states, _BLOCK),)](
        numbers,
        source,
        numbers_to,
        states_to.view(torch.int32),
        arrived,
        told,
        numbers.numel(),
        n_states,
        number_blocks,
        BLOCK=_BLOCK,
        num_warps=4,
    )
