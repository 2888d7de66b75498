"""The KV pool: sizes, and that a batch touches no slot but its own."""

from __future__ import annotations

import pytest
import torch
from shoal.blocks.batch import Row, check_rows, make_batch
from shoal.blocks.checkpoint import resolve
from shoal.blocks.kv import PAGE_TOKENS, KVPool, from_int8, kv_bytes_per_token, to_int8
from shoal.blocks.span import Span, SpanOptions, load_span
from shoal.blocks.spec import spec_of
from tiny_models import save_tiny
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
    assert bytes_of(pool) == kv_bytes_per_token(spec, range(1, 4), torch.bfloat16) * (7 + 1) * PAGE_TOKENS
    assert kv_bytes_per_token(spec, range(1), torch.float32) == 2 * 2 * 24 * 4
    assert pool.block(2).keys.shape == ((7 + 1) * PAGE_TOKENS, 2, 24)
    assert (pool.n_slots, pool.scratch_page) == (7 * PAGE_TOKENS, 7)


def test_int8_takes_a_byte_and_a_share_of_a_scale(spec) -> None:
    pool = KVPool(spec, range(1, 4), 7, "cpu", torch.bfloat16, "int8")
    assert bytes_of(pool) == kv_bytes_per_token(spec, range(1, 4), torch.bfloat16, "int8") * (7 + 1) * PAGE_TOKENS
    assert kv_bytes_per_token(spec, range(1), torch.float32, "int8") == 2 * 2 * (24 + 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_within_half_a_step_of_the_largest(dtype) -> None:
    numbers = (
        torch.randn(50, 3, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
        * 10.0 ** torch.arange(-2, 1)[:, None]
    )
    stored, scale = to_int8(numbers)
    step = numbers.float().abs().amax(-1, keepdim=True) / 127
    error = (from_int8(stored, scale[..., None]) - numbers.float()).abs() / step
    assert 0.4 < error.max() < 0.57
    assert stored.abs().amax(-1).min() >= 126


def test_int8_of_nothing_is_nothing_and_what_is_no_number_stays_none() -> None:
    numbers = torch.zeros(3, 8)
    numbers[1, 2], numbers[2] = torch.nan, 1e-9
    stored, scale = to_int8(numbers)
    found = from_int8(stored, scale[:, None])
    assert not found[[0, 2]].any()
    assert found[1].isnan().any()


@pytest.mark.parametrize("kind", ["auto", "int8"])
@pytest.mark.parametrize("piece", [1000, 1 << 22], ids=["many pieces", "one piece"])
def test_saved_pages_come_back_where_they_are_wanted(spec, kind, piece, monkeypatch) -> None:
    monkeypatch.setattr("shoal.blocks.kv._PIECE_BYTES", piece)
    pool = random_pool(spec, kind)
    before = contents(pool)
    saved = pool.save([6, 0, 3])
    spoil(pool)
    pool.restore(saved, [2, 5, 4])
    for old, new in zip(before, contents(pool), strict=True):
        assert torch.equal(new[[2, 5, 4]], old[[6, 0, 3]])
        assert not new[[0, 1, 3, 6, 7]].any()
    assert sum(len(part) for part in saved.pieces) < saved.n_bytes + piece
    assert saved.n_bytes == kv_bytes_per_token(spec, pool.blocks, pool.dtype, kind) * 3 * PAGE_TOKENS


@pytest.mark.parametrize("kind", ["auto", "int8"])
def test_copied_pages_are_the_same_and_the_others_stay(spec, kind) -> None:
    pool = random_pool(spec, kind)
    before = contents(pool)
    pool.copy([1, 4], [4, 6])
    for old, new in zip(before, contents(pool), strict=True):
        assert torch.equal(new, old[[0, 1, 2, 3, 1, 5, 4, 7]])


def test_pages_that_do_not_fit_are_refused(spec) -> None:
    pool = random_pool(spec, "auto")
    saved = pool.save([1, 2])
    with pytest.raises(ValueError, match="not in a pool of 7"):
        pool.save([pool.scratch_page])
    with pytest.raises(ValueError, match="not in a pool of 7"):
        pool.restore(saved, [-1, 2])
    with pytest.raises(ValueError, match=r"2 saved pages of .* do not fit 1"):
        pool.restore(saved, [1])
    with pytest.raises(ValueError, match=r"2 saved pages of .* do not fit 2"):
        random_pool(spec, "int8").restore(saved, [1, 2])
    with pytest.raises(ValueError, match="1 pages cannot be copied to 2"):
        pool.copy([1], [2, 3])
    with pytest.raises(ValueError, match="not 'fp4'"):
        KVPool(spec, range(1), 1, "cpu", torch.float32, "fp4")


@pytest.mark.parametrize("count", [1, 3, 8, 40])
def test_what_is_saved_takes_little_more_than_what_it_holds(spec, count) -> None:
    """Host memory for sessions that wait is counted by the page; page-locked pieces are rounded up to powers of two."""
    pool = KVPool(spec, range(5), 64, "cpu", torch.float32)
    for pages in pool._paged():
        pages.copy_(torch.randn(pages.shape))
    saved = pool.save(range(count))
    held = sum(1 << (len(piece) - 1).bit_length() for piece in saved.pieces)
    assert saved.n_bytes <= held <= saved.n_bytes + (1 << 16)
    assert len({len(piece) for piece in saved.pieces[:-1]}) <= 7
    wanted = [pages[:count].clone() for pages in pool._paged()]
    pool.restore(saved, range(63, 63 - count, -1))
    assert all(
        torch.equal(pages[64 - count : 64].flip(0), was) for pages, was in zip(pool._paged(), wanted, strict=True)
    )


@pytest.mark.parametrize("kind", ["llama", "gpt-oss", "gemma2", "bloom", "falcon-new-architecture"])
@pytest.mark.parametrize("together", [False, True], ids=["row by row", "gathered"])
def test_a_span_with_int8_stays_close(tmp_path, monkeypatch, kind, together) -> None:
    """Both ways of reading rows, a family with sinks and windows, and two with attention of their own."""
    if together:
        monkeypatch.setattr("shoal.blocks.batch.ROW_BY_ROW", frozenset())
    save_tiny(kind, tmp_path)
    plain = load_span(resolve(str(tmp_path)), range(4), SpanOptions(kv_pages=8, dtype=torch.float32))
    rounded = Span(plain._parts, KVPool(plain.spec, range(4), 8, "cpu", torch.float32, "int8"))
    found, expected = (torch.cat(forward_steps(span)) for span in (rounded, plain))
    error = (found - expected).norm() / expected.norm()
    assert 1e-5 < error < 0.02


def forward_steps(span: Span) -> list[torch.Tensor]:
    draw, width = torch.Generator().manual_seed(7), span.spec.hidden_size
    steps = [
        [Row([0, 1], 0, 20), Row([5, 3, 2], 0, 33)],
        [Row([0, 1], 20, 1), Row([5, 3, 2], 33, 4), Row([7], 0, 1)],
        [Row([0, 1], 21, 1), Row([5, 3, 2], 37, 1)],
        [Row([5, 3, 2], 38, 1)],
    ]
    return [span.forward(torch.randn(sum(r.count for r in rows), width, generator=draw), rows) for rows in steps]


def bytes_of(pool: KVPool) -> int:
    return sum(part.nbytes for part in parts(pool))


def parts(pool: KVPool) -> list[torch.Tensor]:
    return [part for block in pool.blocks for pair in pool.block(block).pairs for part in pair if part is not None]


def contents(pool: KVPool) -> list[torch.Tensor]:
    return [part.unflatten(0, (-1, PAGE_TOKENS)).clone() for part in parts(pool)]


def spoil(pool: KVPool) -> None:
    for part in parts(pool):
        part.zero_()


def random_pool(spec, kind: str) -> KVPool:
    pool = KVPool(spec, range(1, 4), 7, "cpu", torch.bfloat16, kind)
    everywhere = slice(0, 8 * PAGE_TOKENS)
    for block in pool.blocks:
        pool.block(block).write(everywhere, torch.randn(128, 2, 24), torch.randn(128, 2, 24))
    return pool


def test_an_empty_pool_is_refused(spec) -> None:
    with pytest.raises(ValueError, match="at least one page"):
        KVPool(spec, range(1), 0, "cpu", torch.float32)


def test_slots_follow_the_pages() -> None:
    batch = make_batch((Row([5, 0, 3], 14, 20), Row([1], 2, 1)), CPU)
    expected = [5 * 16 + 14, 5 * 16 + 15, *range(16), 3 * 16, 3 * 16 + 1, 16 + 2]
    assert batch.write.tolist() == expected
    assert batch.positions.tolist() == [[*range(14, 34), 2]]


def test_consecutive_pages_are_read_as_a_view() -> None:
    batch = make_batch((Row([2, 3, 4], 40, 1), Row([4, 3, 2], 40, 1)), CPU)
    together, scattered = batch.reads(None)
    assert together.slots == slice(32, 32 + 41)
    assert isinstance(scattered.slots, torch.Tensor)
    assert scattered.slots.tolist() == [*range(64, 80), *range(48, 64), *range(32, 41)]


def test_a_window_reads_only_what_it_shows() -> None:
    one, chunk = make_batch((Row([0, 1, 2], 40, 1), Row([3, 4, 5], 30, 3)), CPU).reads(8)
    assert one.slots == slice(33, 41)
    assert chunk.slots == slice(48 + 23, 48 + 33)
    assert chunk.mask.tolist() == [[i <= q <= i + 7 for i in range(23, 33)] for q in range(30, 33)]


def test_padding_stays_in_its_own_row() -> None:
    """A stranger's slot, were it NaN, would spoil a row even where the mask gives it no weight."""
    rows = [Row([2], 11, 1), Row([6, 5], 20, 1), Row([0], 0, 4)]
    (read,) = make_batch(tuple(rows), CPU).padded_reads(None, 1000)
    longest, other = read.slots.view(2, 21).tolist()
    assert read.tokens.tolist() == [1, 0]
    assert longest == [*range(96, 112), *range(80, 85)]
    assert other == [*range(32, 44)] + [32] * 9
    assert read.mask.sum(-1).flatten().tolist() == [21, 12]


@pytest.mark.parametrize("most", [1, 100, 1000])
def test_padding_is_less_than_what_is_read_and_groups_are_no_larger_than_asked(most) -> None:
    ends = [70, 3, 9, 64, 8, 40, 1, 33, 17, 16]
    rows = tuple(Row(range(8 * number, 8 * number + 5), end - 1, 1) for number, end in enumerate(ends))
    reads = make_batch(rows, CPU).padded_reads(None, most)
    assert sorted(index for read in reads for index in read.tokens.tolist()) == list(range(len(rows)))
    for read in reads:
        assert read.mask.shape[0] == 1 or read.mask.numel() <= most
        assert 2 * read.mask.sum() >= read.mask.numel()


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
        check_rows([row], 8 * PAGE_TOKENS)


@pytest.mark.parametrize("kind", ["llama", "gpt-oss", "gemma2"])
def test_decode_tokens_of_very_different_lengths_share_little_memory(tmp_path, monkeypatch, kind) -> None:
    """Rows are widened to the longest of some: few at a time give what many do."""
    monkeypatch.setattr("shoal.blocks.batch.ROW_BY_ROW", frozenset())
    save_tiny(kind, tmp_path)
    span = load_span(resolve(str(tmp_path)), range(4), SpanOptions(kv_pages=16, dtype=torch.float32, fused=False))
    rows = [Row((number,), 0, 5 + number) for number in range(6)] + [Row(range(6, 11), 0, 70)]
    span.forward(torch.randn(sum(row.count for row in rows), 64), rows)
    hidden, decodes = torch.randn(len(rows), 64), [Row(row.pages, row.count, 1) for row in rows]
    wanted = span.forward(hidden, decodes)
    for most in (1, 1 << 14, 1 << 20):
        monkeypatch.setattr("shoal.blocks.attention.MOST_BYTES", most)
        assert (span.forward(hidden, decodes) - wanted).abs().max() < 1e-5
