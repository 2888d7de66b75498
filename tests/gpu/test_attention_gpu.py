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


def load(dtype):
    return load_span(resolve("demo"), range(2), SpanOptions(kv_pages=12, device="cuda", dtype=dtype, fused=False))


@pytest.fixture(scope="module")
def span():
    return load(torch.bfloat16)


def decode(span, pages, position):
    """One token of each sequence, all at the same position."""
    hidden = torch.randn(len(pages), span.spec.hidden_size)
    return span.forward(hidden, [Row(held, position, 1) for held in pages])


def attention_of(span, pages):
    """The names of torch's own attention that four decode steps behind a prompt call."""
    for held in pages:
        span.forward(torch.randn(PROMPT, span.spec.hidden_size), [Row(held, 0, PROMPT)])
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:  # else torch 2.11 warns
        for position in range(PROMPT, PROMPT + 4):
            assert torch.isfinite(decode(span, pages, position)).all()
    return {event.key for event in seen.key_averages() if "attention" in event.key}


@pytest.mark.parametrize(
    ("pages", "dtype"),
    [([(0, 1, 2)], torch.bfloat16), ([(2, 0, 1)], torch.bfloat16), ([(0, 1, 2), (5, 3, 4)], torch.float32)],
    ids=["slice", "gather", "batch"],
)
def test_a_decode_step_uses_a_kernel_that_needs_no_plan_for_its_length(pages, dtype):
    names = attention_of(load(dtype), pages)
    assert names & {"aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_efficient_attention"}
    assert not names & {"aten::_scaled_dot_product_cudnn_attention", "aten::_scaled_dot_product_attention_math"}


def test_rows_of_16_bits_share_a_kernel_of_ours_and_nothing_is_copied_out_of_pages(span):
    assert attention_of(span, [(0, 1, 2), (5, 3, 4)]) == set()


def test_the_order_of_kernels_is_as_before_after_a_forward(span):
    decode(span, [(0,)], 0)
    before = torch._C._get_sdp_priority_order()
    decode(span, [(0,)], 0)
    assert torch._C._get_sdp_priority_order() == before
