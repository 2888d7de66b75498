"""Which attention kernels a span uses on a CUDA device."""

import pytest
import torch
from shoal.blocks.checkpoint import resolve
from shoal.blocks.span import Row, SpanOptions, load_span
from torch.profiler import ProfilerActivity, profile

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PROMPT = 20


@pytest.fixture(scope="module")
def span():
    options = SpanOptions(kv_pages=12, device="cuda", dtype=torch.bfloat16, fused=False)
    return load_span(resolve("demo"), range(2), options)


def decode(span, pages, position):
    """One token of each sequence, all at the same position."""
    hidden = torch.randn(len(pages), span.spec.hidden_size)
    return span.forward(hidden, [Row(held, position, 1) for held in pages])


@pytest.mark.parametrize("pages", [[(0, 1, 2)], [(2, 0, 1)], [(0, 1, 2), (5, 3, 4)]], ids=["slice", "gather", "batch"])
def test_a_decode_step_uses_a_kernel_that_needs_no_plan_for_its_length(span, pages):
    for held in pages:
        span.forward(torch.randn(PROMPT, span.spec.hidden_size), [Row(held, 0, PROMPT)])
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:  # else torch 2.11 warns
        for position in range(PROMPT, PROMPT + 4):
            assert torch.isfinite(decode(span, pages, position)).all()
    names = {event.key for event in seen.key_averages() if "attention" in event.key}
    assert names & {"aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_efficient_attention"}
    assert not names & {"aten::_scaled_dot_product_cudnn_attention", "aten::_scaled_dot_product_attention_math"}


def test_the_order_of_kernels_is_as_before_after_a_forward(span):
    decode(span, [(0,)], 0)
    before = torch._C._get_sdp_priority_order()
    decode(span, [(0,)], 0)
    assert torch._C._get_sdp_priority_order() == before
