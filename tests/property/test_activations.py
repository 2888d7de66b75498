"""Hidden states through each form in which they travel: bounded errors, rows apart, the same bytes every time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.blocks.activations import pack, to_bytes, unpack, view_bytes
from shoal.blocks.formats import BLOCK, FORMS, row_bytes

FEW = settings(max_examples=100, deadline=None)
ODD = [float("nan"), float("inf"), float("-inf")]
widths = st.integers(1, 3 * BLOCK + 1)


@st.composite
def rows(draw) -> torch.Tensor:
    """Rows whose sizes differ from block to block, as those of models do."""
    shape = draw(st.integers(1, 5)), draw(widths)
    made = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 1 << 30))))
    made *= 10.0 ** draw(st.integers(-40, 36))
    if draw(st.booleans()):
        made[:, draw(st.integers(0, shape[1] - 1))] *= 100
    return made


def through(states: torch.Tensor, form: str) -> torch.Tensor:
    payload = bytearray(to_bytes(pack(states, form)))
    assert len(payload) == len(states) * row_bytes(form, states.shape[1])
    return unpack(view_bytes(payload, form, states.shape[1]), form, states.shape[1])


@FEW
@given(rows())
def test_an_int8_error_is_at_most_half_a_step_of_its_block(states):
    back = through(states, "int8")
    assert back.dtype is torch.float32
    for start in range(0, states.shape[1], BLOCK):
        block, got = states[:, start : start + BLOCK].double(), back[:, start : start + BLOCK].double()
        step = block.abs().amax(1, keepdim=True) / 127 * (1 + 2**-7)  # a scale is rounded up to 8 bits
        assert ((block - got).abs() <= step / 2 * (1 + 1e-5) + 1e-40).all()


@FEW
@given(rows(), st.sampled_from(FORMS))
def test_rows_travel_apart_and_the_same_way_every_time(states, form):
    payload = bytes(to_bytes(pack(states, form)))
    assert payload == bytes(to_bytes(pack(states.clone(), form)))
    assert payload == b"".join(bytes(to_bytes(pack(row[None], form))) for row in states)


@FEW
@given(rows(), st.sampled_from(FORMS))
def test_what_has_travelled_once_is_not_changed_again_but_for_a_step(states, form):
    once = through(states, form)
    twice = through(once, form)
    if form == "int8":  # a scale that was rounded up may be rounded up once more
        assert torch.allclose(once, twice, rtol=0, atol=float(once.abs().max()) / 100 + 1e-40)
    else:
        assert torch.equal(once, twice)


@pytest.mark.parametrize("odd", ODD)
def test_a_number_that_is_not_finite_makes_its_block_nan_and_no_other(odd):
    states = torch.ones(2, 3 * BLOCK)
    states[1, BLOCK] = odd
    back = through(states, "int8")
    assert back[1, BLOCK : 2 * BLOCK].isnan().all()
    back[1, BLOCK : 2 * BLOCK] = 1
    assert torch.allclose(back, states.nan_to_num(1, 1, 1), atol=0.01)


def test_zeros_and_the_largest_numbers_come_back():
    assert torch.equal(through(torch.zeros(2, 70), "int8"), torch.zeros(2, 70))
    large = torch.full((1, 64), 3e38)
    assert torch.allclose(through(large, "int8"), large, rtol=0.01)


@FEW
@given(st.sampled_from(FORMS), widths, st.binary(max_size=2000).map(bytearray))
def test_any_bytes_are_rows_or_refused(form, width, payload):
    size = row_bytes(form, width)
    if len(payload) % size:
        with pytest.raises(ValueError, match="are no rows"):
            view_bytes(payload, form, width)
    else:
        assert unpack(view_bytes(payload, form, width), form, width).shape == (len(payload) // size, width)


def test_int8_takes_a_quarter_of_float32():
    assert row_bytes("int8", 4096) == 4096 + 2 * 64
    assert row_bytes("float32", 4096) / row_bytes("int8", 4096) > 3.85
    assert row_bytes("int8", 65) == 65 + 2 * 2
