"""A span by itself: sub-ranges, isolation of rows, dtypes, quantization, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from shoal.blocks.checkpoint import resolve
from shoal.blocks.packed import PackedLinear
from shoal.blocks.span import Row, SpanOptions, load_span
from tiny_models import save_tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_tiny("llama", folder)
    return resolve(str(folder))


@pytest.fixture
def span(checkpoint):
    return load_span(checkpoint, range(4), SpanOptions(kv_pages=8, dtype=torch.float32))


def states(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, 64, generator=torch.Generator().manual_seed(seed))


def test_sub_ranges_compose_to_the_whole(span) -> None:
    hidden, rows = states(9), [Row([3], 0, 9)]
    whole = span.forward(hidden, rows)
    first = span.forward(hidden, rows, stop=1)
    middle = span.forward(first, rows, 1, 3)
    assert torch.equal(span.forward(middle, rows, start=3), whole)


def test_a_row_s_answer_does_not_depend_on_its_company(span) -> None:
    prompts = [states(20, 1), states(3, 2), states(1, 3)]
    rows = [Row([0, 1], 0, 20), Row([5], 0, 3), Row([3], 0, 1)]
    alone = [span.forward(prompt, [row]) for prompt, row in zip(prompts, rows, strict=True)]
    together = span.forward(torch.cat(prompts), rows)
    assert (together - torch.cat(alone)).abs().max() <= 1e-5


def test_only_the_row_s_slots_are_written(span) -> None:
    span.kv.block(2).keys.fill_(7.0)
    span.forward(states(3), [Row([6, 1], 15, 3)])
    changed = (span.kv.block(2).keys != 7.0).flatten(1).any(1).nonzero().flatten().tolist()
    assert changed == [16, 17, 111]


def test_a_stranger_s_nan_does_not_spread(span) -> None:
    """Pages are handed on without wiping: whatever the last owner left there must not reach the next."""
    expected = span.forward(states(5), [Row([2], 0, 5)])
    for block in span.blocks:
        span.kv.block(block).keys.fill_(torch.nan)
        span.kv.block(block).values.fill_(torch.nan)
    assert torch.equal(span.forward(states(5), [Row([2], 0, 5)]), expected)
    pair = span.forward(torch.cat([states(1, 4), states(5)]), [Row([4], 0, 1), Row([2], 0, 5)])
    assert not pair.isnan().any()
    assert not span.forward(states(2, 5), [Row([4], 1, 1), Row([2], 5, 1)]).isnan().any()


def test_a_step_again_gives_the_same_answer(span) -> None:
    span.forward(states(18), [Row([1, 2], 0, 18)])
    step = [Row([1, 2], 18, 1)]
    assert torch.equal(span.forward(states(1, 9), step), span.forward(states(1, 9), step))


def test_no_gradient_graph_is_built(span) -> None:
    assert span.forward(states(2).requires_grad_(), [Row([0], 0, 2)]).is_inference()


def test_plain_linear_layers_are_packed_on_the_cpu(checkpoint) -> None:
    """Where our own C does not go over them."""
    span = load_span(checkpoint, range(4), SpanOptions(kv_pages=8, dtype=torch.float32, kv_dtype="int8"))
    kinds = {type(module).__name__ for layer in span._parts.layers.values() for module in layer.modules()}
    assert "PackedLinear" in kinds
    assert "Linear" not in kinds


def test_a_packed_layer_equals_the_plain_one() -> None:
    torch.manual_seed(3)
    plain = torch.nn.Linear(48, 80)
    hidden = torch.randn(1, 7, 48)
    with torch.inference_mode():
        assert (PackedLinear(plain)(hidden) - plain(hidden)).abs().max() <= 1e-5


def test_bfloat16_is_near_float32(checkpoint, span) -> None:
    half = load_span(checkpoint, range(4), SpanOptions(kv_pages=8, dtype=torch.bfloat16))
    rows = [Row([0, 1], 0, 20)]
    found, expected = half.forward(states(20), rows), span.forward(states(20), rows)
    assert found.dtype == half.kv.block(0).keys.dtype == torch.bfloat16
    error = (found.float() - expected).norm() / expected.norm()
    assert 1e-5 < error < 0.05


def test_a_quantized_span_is_near_float32(checkpoint, span) -> None:
    options = SpanOptions(kv_pages=8, dtype=torch.float32, quantization="int8")
    rows = [Row([0, 1], 0, 20)]
    found = load_span(checkpoint, range(4), options).forward(states(20), rows)
    expected = span.forward(states(20), rows)
    error = (found - expected).norm() / expected.norm()
    assert 1e-5 < error < 0.1


@pytest.mark.parametrize("blocks", [range(5), range(3, 5), range(2, 2), range(0, 4, 2)])
def test_blocks_that_the_model_lacks_are_refused(checkpoint, blocks) -> None:
    with pytest.raises(ValueError, match="not in this model of 4 blocks"):
        load_span(checkpoint, blocks, SpanOptions(kv_pages=1))


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (1, 4), (2, 2), (2, 1)])
def test_sub_ranges_outside_the_span_are_refused(checkpoint, start, stop) -> None:
    part = load_span(checkpoint, range(1, 3), SpanOptions(kv_pages=1))
    with pytest.raises(ValueError, match="not in this span, 1:3"):
        part.forward(states(1), [Row([0], 0, 1)], start, stop)


@pytest.mark.parametrize("shape", [(2, 64), (3, 63), (1, 3, 64)])
def test_hidden_states_of_another_shape_are_refused(span, shape) -> None:
    with pytest.raises(ValueError, match="do not fit rows of 3 tokens"):
        span.forward(torch.zeros(shape), [Row([0], 0, 3)])
