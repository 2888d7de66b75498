"""The kernels that fetch a step's inputs from the host and send its results there, in Triton's interpreter."""

from __future__ import annotations

import interpreted  # noqa: F401
import pytest
import torch
from shoal.blocks.activations import pack

# isort: split
from shoal.blocks.kernels.fetch import fetch
from shoal.blocks.kernels.send import send


@pytest.mark.parametrize("states", [None, (3, 700), (1, 8), (40, 2048)])
@pytest.mark.parametrize("numbers", [1, 1024, 1300])
def test_fetch_copies_all_and_tells_the_last_number(numbers: int, states: tuple[int, int] | None) -> None:
    ints, ints_to = torch.randint(1, 1 << 30, (numbers,), dtype=torch.int32), torch.zeros(numbers, dtype=torch.int32)
    rows = torch.randn(states or (2, 8)).bfloat16()
    rows_to, arrived, told = (
        torch.zeros_like(rows),
        torch.zeros(1, dtype=torch.int32),
        torch.zeros(1, dtype=torch.int32),
    )
    for number in (7, 8):
        ints[-1] = number
        fetch(ints, ints_to, rows if states else None, rows_to, arrived, told)
        assert torch.equal(ints_to, ints)
        assert torch.equal(rows_to, rows if states else torch.zeros_like(rows))
        assert told.item() == number
        assert arrived.item() == 0


@pytest.mark.parametrize("form", ["bfloat16", "int8", "float32", "float16"])
@pytest.mark.parametrize("width", [64, 192, 1000])
def test_send_places_rows_and_says_which_are_finite(width: int, form: str) -> None:
    result = torch.randn(6, width).bfloat16()
    result[0], result[1, 5], result[4, -1] = 3e38, torch.nan, -torch.inf  # finite, though their sum is not
    sent = pack(result, form).view(torch.int16)
    places = torch.tensor([2, -1, 0, -1, 1, 3], dtype=torch.int32)
    rows, finite = torch.zeros(5, sent.shape[1], dtype=torch.int16), torch.full((6,), 9, dtype=torch.int32)
    send(result, sent, places, rows, finite)
    assert finite.tolist() == [1, 0, 1, 1, 0, 1]
    assert torch.equal(rows[:4], sent[[2, 4, 0, 5]])
    assert not rows[4].any()
