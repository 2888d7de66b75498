"""Tokens that came one by one and are run again together, to refill a hop: where rotations depend on a sequence's
length, each keeps its own."""

from __future__ import annotations

import pytest
import torch
from shoal.blocks.checkpoint import resolve
from shoal.blocks.choices import EACH_ITS_OWN
from shoal.blocks.span import Row, SpanOptions, load_span
from shoal.client.steps import Steps
from shoal.peer.book import LeaseBook
from shoal.peer.job import Job, cut
from shoal.peer.lease import Run
from shoal.peer.scheduler import Slice
from shoal.peer.wire import Hidden, Want
from test_book import OPEN, book, request
from tiny_models import save_tiny

PROMPT, NEW = 12, 9  # across the 16 tokens at which these models' rotations change


@pytest.mark.parametrize("kind", ["phi3-longrope", "llama-dynamic-rope", "llama"])
def test_a_repair_leaves_the_kv_as_it_was(kind, tmp_path):
    save_tiny(kind, tmp_path)
    span = load_span(resolve(str(tmp_path)), range(4), SpanOptions(kv_pages=8, dtype=torch.float32))
    hidden = torch.randn(PROMPT + NEW + 1, 64, generator=torch.Generator().manual_seed(1))
    steps, own, refilled = Steps(30), (0, 1), (2, 3)
    steps.add(PROMPT, Want.LAST, b"", PROMPT)
    span.forward(hidden[:PROMPT], [Row(own, 0, PROMPT, PROMPT)])
    for position in range(PROMPT, PROMPT + NEW):
        steps.add(1, Want.LAST, b"", 0)
        span.forward(hidden[position : position + 1], [Row(own, position, 1)])
    for number in range(steps.next):
        steps.answered(number)
    for step in steps.replay(lambda _start, _stop: b""):
        length = length_of(step.position, step.count, step.length)
        span.forward(
            hidden[step.position : step.position + step.count], [Row(refilled, step.position, step.count, length)]
        )
    last = hidden[-1:]
    wanted, found = (span.forward(last, [Row(pages, len(hidden) - 1, 1)]) for pages in (own, refilled))
    assert (wanted - found).abs().max() < 1e-4


def length_of(position: int, count: int, length: int) -> int:
    """What the engine is told of a replayed piece."""
    lease = LeaseBook(book().offer).open(request(), "c")
    message = Hidden(
        session=OPEN.session, epoch=1, step=0, position=position, count=count, want=Want.NONE, replay=True, rows=count,
        width=4, dtype="float32", length=length, payload=bytes(16 * count),
    )  # fmt: skip
    return cut(Job(lease, Run(message, 0), 0.0), Slice(1, 0, count, done=True)).length


def test_a_prompt_keeps_its_length_and_tokens_that_came_alone_have_none():
    assert length_of(0, 12, 40) == 40
    assert length_of(12, 8, 0) == EACH_ITS_OWN
