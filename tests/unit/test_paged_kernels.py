"""Decode attention by our GPU kernel under transformers' own layers, run by Triton's interpreter on the CPU."""

from __future__ import annotations

import interpreted  # noqa: F401
import pytest
import torch
from shoal.blocks.checkpoint import resolve
from shoal.blocks.kv import BlockKV
from shoal.blocks.span import Row, SpanOptions, load_span
from tiny_models import save_tiny

# isort: split
from shoal.blocks import attention
from shoal.blocks.kernels import paged

PAGES = ([5, 3, 9, 1], [2, 8, 4, 20], [7, 6])
FORWARDS = (  # prompts; decodes with a chunk between them; decodes of very different lengths
    [Row(PAGES[0], 0, 40), Row(PAGES[1], 0, 3)],
    [Row(PAGES[1], 3, 1), Row(PAGES[2], 0, 9), Row(PAGES[0], 40, 1)],
    [Row(PAGES[0], 41, 1), Row(PAGES[1], 4, 1), Row(PAGES[2], 9, 1)],
)


@pytest.mark.parametrize(
    ("variant", "kv"),
    [("gpt-oss", "auto"), ("gpt-oss", "int8"), ("mixtral", "auto"), ("gpt2", "auto"), ("gpt-neox", "int8")],
)
def test_kernels_attend_as_torch_does(variant: str, kv: str, tmp_path, monkeypatch) -> None:
    """With windows, sinks, one head or many that share keys."""
    save_tiny(variant, tmp_path)
    options = SpanOptions(kv_pages=24, dtype=torch.float32, kv_dtype=kv, fused=False)
    exact, found = (load_span(resolve(str(tmp_path)), range(2), options) for _ in range(2))
    for index in found.blocks if kv == "auto" else ():  # what the last owner of a page left behind must not show
        found.kv.block(index).keys.fill_(torch.nan)
        found.kv.block(index).values.fill_(torch.nan)
    seen = []
    attend = paged.attend_together
    monkeypatch.setattr(paged, "attend_together", lambda *given: seen.append(given[3][0]) or attend(*given))
    monkeypatch.setattr("shoal.blocks.batch.ROW_BY_ROW", frozenset())
    for number, rows in enumerate(FORWARDS):
        generator = torch.Generator().manual_seed(number)
        hidden = torch.randn((sum(row.count for row in rows), exact.spec.hidden_size), generator=generator)
        expected = exact.forward(hidden, rows)
        with monkeypatch.context() as patched:
            patched.setattr(attention, "has_kernels", lambda *_: True)
            error = (found.forward(hidden, rows) - expected).norm() / expected.norm()
        assert error < (1e-5 if kv == "auto" else 1e-3), (rows, error)  # int8: what is nearly a tie goes either way
    assert len(seen) == 2 * 2


def test_heads_that_the_kernels_do_not_know_are_left_to_torch() -> None:
    def kv(keys: int, values: int) -> BlockKV:
        return BlockKV(torch.zeros(16, 2, keys), torch.zeros(16, 2, values))

    query = torch.zeros(1, 2, 3, 64)
    assert paged.takes(query, kv(64, 64))
    assert not paged.takes(query, kv(64, 32))
    assert not paged.takes(torch.zeros(1, 2, 3, 512), kv(512, 512))
