"""The KV pool: sizes, and that a batch touches no slot but its own."""

from __future__ import annotations

import pytest
import torch
from shoal.blocks.batch import Row, make_batch
from shoal.blocks.kv import PAGE_TOKENS, KVPool, kv_bytes_per_token
from shoal.blocks.spec import spec_of
from transformers import LlamaConfig

CPU = torch.device("cpu")


@pytest.fixture
def spec():
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=5, head_dim=24, vocab_size=10
    )
    return spec_of(type("Checkpoint", (), {"config": config.to_dict()}))


def test_a_token_s_bytes_are_the_pool_s(spec) -> None:
    pool = KVPool(spec, range(1, 4), 7, "cpu", torch.bfloat16)
    held = sum(tensor(block).nbytes for tensor in (pool.keys, pool.values) for block in range(1, 4))
    assert held == kv_bytes_per_token(spec, range(1, 4), torch.bfloat16) * 7 * PAGE_TOKENS
    assert kv_bytes_per_token(spec, range(1), torch.float32) == 2 * 2 * 24 * 4
    assert pool.keys(2).shape == (7 * PAGE_TOKENS, 2, 24)


def test_an_empty_pool_is_refused(spec) -> None:
    with pytest.raises(ValueError, match="at least one page"):
        KVPool(spec, range(1), 0, "cpu", torch.float32)


def test_slots_follow_the_pages() -> None:
    batch = make_batch([Row([5, 0, 3], 14, 20), Row([1], 2, 1)], 8 * PAGE_TOKENS, CPU)
    expected = [5 * 16 + 14, 5 * 16 + 15, *range(16), 3 * 16, 3 * 16 + 1, 16 + 2]
    assert batch.write.tolist() == expected
    assert batch.positions.tolist() == [[*range(14, 34), 2]]


def test_consecutive_pages_are_read_as_a_view() -> None:
    batch = make_batch([Row([2, 3, 4], 40, 1), Row([4, 3, 2], 40, 1)], 8 * PAGE_TOKENS, CPU)
    together, scattered = batch.reads(None)
    assert together.slots == slice(32, 32 + 41)
    assert isinstance(scattered.slots, torch.Tensor)
    assert scattered.slots.tolist() == [*range(64, 80), *range(48, 64), *range(32, 41)]


def test_a_window_reads_only_what_it_shows() -> None:
    one, chunk = make_batch([Row([0, 1, 2], 40, 1), Row([3, 4, 5], 30, 3)], 8 * PAGE_TOKENS, CPU).reads(8)
    assert one.slots == slice(33, 41)
    assert chunk.slots == slice(48 + 23, 48 + 33)
    assert chunk.mask.tolist() == [[i <= q <= i + 7 for i in range(23, 33)] for q in range(30, 33)]


def test_padding_stays_in_its_own_row() -> None:
    """A stranger's slot, were it NaN, would spoil a row even where the mask gives it no weight."""
    rows = [Row([2], 3, 1), Row([6, 5], 20, 1), Row([0], 0, 4)]
    read = make_batch(rows, 8 * PAGE_TOKENS, CPU).padded_read(None)
    first, second = read.slots.view(2, 21).tolist()
    assert read.tokens.tolist() == [0, 1]
    assert first == [32, 33, 34, 35] + [32] * 17
    assert second == [*range(96, 112), *range(80, 85)]
    assert read.mask.sum(-1).flatten().tolist() == [4, 21]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row([0], 0, 0), "at least one token"),
        (Row([0], -1, 1), "position of 0 or more"),
        (Row([0, 1], 30, 3), "pages hold fewer"),
        (Row([], 0, 1), "pages hold fewer"),
        (Row([8], 0, 1), "outside the pool"),
        (Row([-1], 0, 1), "outside the pool"),
    ],
)
def test_rows_that_do_not_fit_are_refused(row, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_batch([row], 8 * PAGE_TOKENS, CPU)
