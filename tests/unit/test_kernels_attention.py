"""Our kernels around attention against plain torch in float64: compiled on a GPU, interpreted by Triton on a CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from shoal.blocks.batch import Row
from shoal.blocks.kv import PAGE_TOKENS, BlockKV, from_int8, to_int8
from shoal.blocks.structure import RMSNorm

if torch.cuda.is_available():
    pytest.importorskip("triton")
else:
    import interpreted  # noqa: F401

# isort: split
from shoal.blocks.kernels import prefill
from shoal.blocks.kernels.activation import gated_activation
from shoal.blocks.kernels.decode import MAX_SPLITS, choose_splits, decode_attention
from shoal.blocks.kernels.norm import add_norm
from shoal.blocks.kernels.prefill import prefill_attention, prefill_tiles
from shoal.blocks.kernels.rope import HeadShape, cos_sin, rope_and_store
from shoal.blocks.kernels.skinny import Order
from shoal.blocks.kernels.softmax import multiprocessors

TOLERANCE = {torch.float32: 5e-6, torch.float16: 1.5e-3, torch.bfloat16: 8e-3}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch):
    """What a kernel forgets to write is NaN."""
    plain = torch.empty
    with DEVICE:
        plain(0)  # torch notes once, for good, which functions a device applies to: it must be the real ones

    def empty(*size, **options):
        made = plain(*size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", empty)
    torch.manual_seed(5)
    with DEVICE:
        yield


@dataclass
class Case:
    """One attention problem; `pages` of each row lie scattered, and all that no row owns is NaN."""

    heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    dtype: torch.dtype = torch.float32
    ends: tuple[int, ...] = (37, 5, 66)
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    int8: bool = False

    def __post_init__(self) -> None:
        counts = [-(-end // PAGE_TOKENS) for end in self.ends]
        order = torch.randperm(sum(counts) + 3).tolist()
        self.pages = [order[sum(counts[:i]) : sum(counts[: i + 1])] for i in range(len(counts))]
        slots = (sum(counts) + 3) * PAGE_TOKENS
        keys, values = torch.randn(slots, self.kv_heads, self.dim), torch.randn(slots, self.kv_heads, self.dim)
        owned = torch.zeros(slots, dtype=torch.bool)
        for pages, end in zip(self.pages, self.ends, strict=True):
            owned[slots_of(pages, end)] = True
        self.kv = int8_kv(keys, values) if self.int8 else BlockKV(keys.to(self.dtype), values.to(self.dtype))
        for part in (self.kv.key_scale, self.kv.value_scale) if self.int8 else (self.kv.keys, self.kv.values):
            part[~owned] = torch.nan
        self.logits = torch.randn(self.heads).to(self.dtype) if self.sinks else None
        self.rules = {"scale": 0.3, "window": self.window, "softcap": self.softcap, "sinks": self.logits}

    def queries(self, tokens: int) -> torch.Tensor:
        return torch.randn(tokens, self.heads, self.dim).to(self.dtype)

    def expected(self, q: torch.Tensor, row: int, position: int) -> torch.Tensor:
        """One query `[heads, dim]` at a position of a row, in float64."""
        first = 0 if self.window is None else max(0, position + 1 - self.window)
        slots = slots_of(self.pages[row], position + 1)[first:]
        group = self.heads // self.kv_heads
        keys, values = (part[slots].double().repeat_interleave(group, dim=1) for part in plain(self.kv))
        scores = torch.einsum("hd,lhd->hl", q.double(), keys) * 0.3
        if self.softcap:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if self.logits is not None:
            scores = torch.cat([scores, self.logits.double()[:, None]], dim=1)
        weights = torch.softmax(scores, dim=1)[:, : len(slots)]
        return torch.einsum("hl,lhd->hd", weights, values).reshape(-1)

    @property
    def tolerance(self) -> float:
        # With int8, weights are kept in bfloat16: only there is a scale never too small for them.
        return TOLERANCE[torch.bfloat16 if self.int8 and self.dtype == torch.float16 else self.dtype]


def slots_of(pages: list[int], end: int) -> torch.Tensor:
    positions = torch.arange(end)
    return torch.tensor(pages)[positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS


def int8_kv(keys: torch.Tensor, values: torch.Tensor) -> BlockKV:
    (k, k_scale), (v, v_scale) = to_int8(keys), to_int8(values)
    return BlockKV(k, v, k_scale, v_scale)


def plain(kv: BlockKV) -> list[torch.Tensor]:
    return [part if scale is None else from_int8(part, scale[..., None]) for part, scale in kv.pairs]


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return bool((found.double() - expected.double()).norm() <= tolerance * expected.double().norm())


CASES: list[dict[str, Any]] = [
    {},
    *({"heads": heads, "kv_heads": kv} for heads, kv in ((2, 2), (8, 2), (8, 1), (7, 1), (20, 1))),
    *({"dim": dim, "ends": (35, 3)} for dim in (80, 96, 128, 256)),
    *({"window": window} for window in (1, 16, 23)),
    {"softcap": 5.0},
    {"sinks": True},
    {"sinks": True, "window": 20, "dtype": torch.bfloat16},
    {"int8": True},
    {"int8": True, "dtype": torch.float16, "window": 30},
    {"dtype": torch.float16},
    {"dtype": torch.bfloat16, "softcap": 5.0, "dim": 128},
    {"ends": (1, 700, 2)},
]


def named(entries: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in entries.items()) or "usual"


@pytest.mark.parametrize("entries", CASES, ids=named)
@pytest.mark.parametrize("splits", [1, 3])
def test_decode_equals_plain_attention(entries: dict[str, Any], splits: int) -> None:
    case = Case(**entries)
    q = case.queries(len(case.ends) + 1)
    table = torch.full((len(q), 50), 2**30, dtype=torch.int32)
    for row, pages in enumerate(case.pages, start=1):
        table[row, : len(pages)] = torch.tensor(pages)
    ends = torch.tensor([0, *case.ends], dtype=torch.int32)
    found = decode_attention(q, case.kv, table, ends, splits=splits, **case.rules)
    assert found.dtype == case.dtype
    assert not found[0].any(), "a row of padding gives zeros"
    for row, end in enumerate(case.ends):
        assert close(found[row + 1], case.expected(q[row + 1], row, end - 1), case.tolerance)


@pytest.mark.parametrize("splits", range(1, 17))
def test_any_number_of_splits_gives_the_same(splits: int) -> None:
    """More splits than blocks of keys, and numbers that do not divide: calls in a row, so that counts start anew."""
    case = Case(ends=(500, 32, 33), sinks=True, kv_heads=1, heads=2, dim=16)
    table = torch.zeros((3, 32), dtype=torch.int32)
    for row, pages in enumerate(case.pages):
        table[row, : len(pages)] = torch.tensor(pages)
    q, ends = case.queries(3), torch.tensor(case.ends, dtype=torch.int32)
    for _ in range(2):
        found = decode_attention(q, case.kv, table, ends, splits=splits, **case.rules)
        for row, end in enumerate(case.ends):
            assert close(found[row], case.expected(q[row], row, end - 1), 5e-6)


@pytest.mark.parametrize("entries", CASES, ids=named)
def test_prefill_equals_plain_attention(entries: dict[str, Any]) -> None:
    """Rows of one token, of a chunk late in the row, and of the whole row, in one batch."""
    case = Case(**entries)
    counts = [end if i == 0 else 1 if i == 1 else min(end, 34) for i, end in enumerate(case.ends)]
    rows = [Row(p, end - n, n) for p, end, n in zip(case.pages, case.ends, counts, strict=True)]
    q = case.queries(sum(counts))
    tiles = prefill_tiles(rows, case.heads // case.kv_heads, DEVICE)
    found = prefill_attention(q, case.kv, tiles, **case.rules)
    expected = [case.expected(q[i], row, at) for i, (row, at) in enumerate(tokens_of(rows))]
    assert found.dtype == case.dtype
    for i, vector in enumerate(expected):
        assert close(found[i], vector, case.tolerance), i


@pytest.mark.parametrize("entries", [{}, {"window": 130, "sinks": True}, {"int8": True, "dim": 80}], ids=named)
def test_prefill_that_shares_a_tile_s_keys_gives_the_same(entries: dict[str, Any], monkeypatch) -> None:
    """Tiles with more keys than others in one batch, so that some programs have none; twice, as counts start anew."""
    monkeypatch.setattr(prefill, "_SHARE", 32)
    case = Case(ends=(230, 40), **entries)
    rows = [Row(case.pages[0], 225, 5), Row(case.pages[1], 30, 10)]
    q, tiles = case.queries(15), prefill_tiles(rows, 2, DEVICE)
    assert prefill._splits(tiles, case.kv_heads, case.window, 64, DEVICE) > 2
    for _ in range(2):
        found = prefill_attention(q, case.kv, tiles, **case.rules)
        for i, (row, at) in enumerate(tokens_of(rows)):
            assert close(found[i], case.expected(q[i], row, at), case.tolerance)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 128), (torch.bfloat16, 32)])
def test_prefill_with_less_room_gives_the_same(dtype: torch.dtype, share: int, monkeypatch) -> None:
    monkeypatch.setattr(prefill, "_SHARE", share)
    shapes = prefill._shapes
    monkeypatch.setattr(prefill, "_shapes", lambda *case: shapes(*case)[-1:])
    case = Case(ends=(100, 40), dim=256, dtype=dtype)
    rows = [Row(case.pages[0], 95, 5), Row(case.pages[1], 38, 2)]
    q, tiles = case.queries(7), prefill_tiles(rows, 2, DEVICE)
    assert (prefill._splits(tiles, case.kv_heads, None, 64, DEVICE) > 1) == (share == 32)
    found = prefill_attention(q, case.kv, tiles, **case.rules)
    for i, (row, at) in enumerate(tokens_of(rows)):
        assert close(found[i], case.expected(q[i], row, at), case.tolerance)


@pytest.mark.parametrize("batch", [1, 2, 7, 64, 1000])
def test_rows_are_split_less_the_more_of_them_there_are(batch: int) -> None:
    splits = choose_splits(batch, 2, DEVICE)
    assert 1 <= splits <= MAX_SPLITS
    assert splits == 1 or batch * 2 * splits <= 2 * multiprocessors(DEVICE)


def tokens_of(rows: list[Row]) -> list[tuple[int, int]]:
    return [(i, at) for i, row in enumerate(rows) for at in range(row.position, row.end)]


def test_tiles_cover_every_token_once_and_long_ones_come_first() -> None:
    rows = [Row([3], 0, 1), Row(list(range(4, 40)), 100, 300), Row([1, 2], 7, 20)]
    tiles = prefill_tiles(rows, 4, DEVICE)
    held = tiles.table[: tiles.count * 4].view(-1, 4).tolist()
    covered = sorted(at for first, count, _, _ in held for at in range(first, first + count))
    assert covered == list(range(321))
    assert all(count <= tiles.tokens for _, count, _, _ in held)
    ends = [count + position for _, count, position, _ in held]
    assert ends == sorted(ends, reverse=True)
    for first, _, _, pages in held:
        row = rows[0 if first == 0 else 1 if first < 301 else 2]
        assert tiles.table[pages : pages + len(row.pages)].tolist()[:2] == row.pages[:2]


def test_groups_that_do_not_fit_the_tiles_are_refused() -> None:
    case = Case()
    tiles = prefill_tiles([Row(case.pages[0], 0, 37)], 4, DEVICE)
    with pytest.raises(ValueError, match="groups of 4 heads do not fit 4 heads on 2"):
        prefill_attention(case.queries(37), case.kv, tiles, **case.rules)


def rms(x: torch.Tensor, norm: RMSNorm | None) -> torch.Tensor:
    if norm is None:
        return x.double()
    x = x.double()
    weight = norm.weight.double() + norm.plus_one
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps) * weight


@pytest.mark.parametrize("parts", [None, 0, 1, 3], ids=["no delta", "plain", "1 part", "3 parts"])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("posted", [False, True])
def test_add_norm_equals_its_formula(parts: int | None, normed: bool, posted: bool) -> None:
    width, dtype = 72, torch.bfloat16
    residual = torch.randn(4, width) * 3
    delta = None if parts is None else torch.randn(parts, 4, width) if parts else torch.randn(4, width).to(dtype)
    norm = RMSNorm(torch.randn(width).to(dtype), 1e-6, plus_one=True) if normed else None
    post = RMSNorm(torch.randn(width), 1e-3) if posted else None
    total = residual.double()
    if delta is not None:
        total = total + 0.7 * rms(delta.sum(0) if parts else delta, post)
    found = add_norm(residual, delta, norm, post=post, scale=0.7, dtype=dtype)
    assert found.dtype == dtype
    assert close(residual, total, 1e-6)
    assert close(found, rms(total, norm), TOLERANCE[dtype])


def test_add_norm_begins_a_residual_with_what_comes_first() -> None:
    residual, first, norm = torch.full((3, 40), torch.nan), torch.randn(3, 40).bfloat16(), RMSNorm(torch.ones(40), 1e-6)
    found = add_norm(residual, first, norm, dtype=torch.float32, fresh=True)
    assert torch.equal(residual, first.float())
    assert close(found, rms(residual, norm), 1e-6)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("tokens", [1, 8, 13])
def test_add_norm_writes_in_the_order_in_which_the_matrices_read(tokens: int, dense: bool) -> None:
    width, tiles = 192, -(-tokens // 8)
    residual, norm = torch.randn(tokens, width), RMSNorm(torch.randn(width), 1e-6)
    plain = add_norm(residual.clone(), None, norm, dtype=torch.bfloat16)
    found = add_norm(residual, None, norm, dtype=torch.bfloat16, order=Order(tiles, dense))
    padded = torch.cat([plain, plain.new_zeros((8 * tiles - tokens, width))])
    # of a chunk's 64 columns, a lane takes 8 and 8 that lie 32 further on (16-bit weights), or 16 neighbours
    cut = padded.view(tiles, 8, width // 64, *((2, 4, 8) if dense else (4, 2, 8)))
    lines = cut.permute((2, 0, 3, 1, 4, 5) if dense else (2, 0, 4, 1, 3, 5))  # [chunk, tile, part, row, lane, 8]
    kept = torch.arange(8 * tiles).view(1, tiles, 1, 8, 1, 1).expand(lines.shape) < tokens
    assert torch.equal(found.view(lines.shape)[kept], lines[kept])


def test_add_norm_takes_rows_of_a_wider_matrix() -> None:
    wide, residual = torch.randn(3, 50), torch.randn(3, 40)
    expected = residual + wide[:, :40]
    assert close(add_norm(residual, wide[:, :40], None, dtype=torch.float32), expected, 1e-6)
    assert add_norm(residual, None, None, dtype=torch.float16).dtype == torch.float16


@pytest.mark.parametrize("parts", [0, 1, 3])
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu"])
def test_gated_activation_equals_torch(kind: str, parts: int) -> None:
    x = torch.randn(max(parts, 1), 3, 2 * 1100)
    gate, up = x.double().sum(0).chunk(2, dim=-1)
    known = {
        "silu": torch.nn.functional.silu,
        "gelu_tanh": lambda g: torch.nn.functional.gelu(g, approximate="tanh"),
        "gelu": torch.nn.functional.gelu,
    }
    found = gated_activation(x if parts else x[0], kind, torch.float32)
    assert close(found, known[kind](gate) * up, 5e-6)


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """`[T, heads, D]` rotated in float64, pair by pair."""
    out, half = x.clone(), cos.shape[1]
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        c, s = cos[:, i, None].double(), sin[:, i, None].double()
        out[..., a], out[..., b] = x[..., a] * c - x[..., b] * s, x[..., b] * c + x[..., a] * s
    return out


@dataclass
class Turn:
    """One call of rope_and_store. `norm`: the norm's weight is as wide as one head, or as all heads together."""

    heads: int = 4
    kv_heads: int = 2
    dim: int = 32
    rotary: int = 32
    interleaved: bool = False
    norm: str | None = None
    parts: int = 0
    tokens: int = 3
    int8: bool = False
    dtype: torch.dtype = torch.float32

    def norm_of(self, heads: int) -> RMSNorm | None:
        if self.norm is None:
            return None
        return RMSNorm(torch.randn(self.dim * (heads if self.norm == "all" else 1)), 1e-6, self.norm == "plus one")


TURNS: list[dict[str, Any]] = [
    *({"interleaved": interleaved} for interleaved in (False, True)),
    *({"dim": 40, "rotary": 24, "interleaved": interleaved} for interleaved in (False, True)),
    *({"norm": norm} for norm in ("head", "plus one", "all")),
    {"norm": "all", "parts": 2, "interleaved": True, "rotary": 16},
    {"parts": 1},
    {"parts": 3, "dtype": torch.bfloat16},
    {"heads": 7, "kv_heads": 1, "tokens": 20},
    {"heads": 15, "kv_heads": 5, "norm": "head"},
    {"heads": 16, "kv_heads": 8, "tokens": 18},
    {"int8": True},
    {"int8": True, "dim": 40, "rotary": 24, "norm": "head", "kv_heads": 3, "heads": 6, "dtype": torch.float16},
]


@pytest.mark.parametrize("entries", TURNS, ids=named)
def test_rope_and_store_equals_its_parts(entries: dict[str, Any]) -> None:
    turn = Turn(**entries)
    heads = turn.heads + 2 * turn.kv_heads
    qkv = torch.randn(max(turn.parts, 1), turn.tokens, heads * turn.dim)
    qkv = qkv if turn.parts else qkv[0].to(turn.dtype)
    frequencies = 100.0 ** (-torch.arange(turn.rotary // 2) / turn.rotary)
    cos, sin = cos_sin(torch.arange(5, 5 + turn.tokens), frequencies, 1.25)
    pools = torch.randn(64, turn.kv_heads, turn.dim), torch.randn(64, turn.kv_heads, turn.dim)
    kv = int8_kv(*pools) if turn.int8 else BlockKV(*(pool.to(turn.dtype) for pool in pools))
    before = [part.clone() for pair in kv.pairs for part in pair if part is not None]
    slots = torch.randperm(64)[: turn.tokens].to(torch.int32)
    norms = turn.norm_of(turn.heads), turn.norm_of(turn.kv_heads)
    shape = HeadShape(turn.heads, turn.kv_heads, turn.dim, turn.rotary, turn.interleaved)
    q = rope_and_store(qkv, cos, sin, slots, kv, shape, q_norm=norms[0], k_norm=norms[1], dtype=turn.dtype)

    whole = (qkv.double().sum(0) if turn.parts else qkv.double()).view(turn.tokens, heads, turn.dim)
    queries, keys, values = whole.split([turn.heads, turn.kv_heads, turn.kv_heads], dim=1)
    queries, keys = (
        turned(all_normed(part, norm, turn.dim), cos, sin, turn.interleaved)
        for part, norm in zip((queries, keys), norms, strict=True)
    )
    assert q.dtype == turn.dtype
    assert close(q, queries, TOLERANCE[turn.dtype])
    for found, expected in zip(plain(kv), (keys, values), strict=True):
        assert close(found[slots.long()], expected, 0.01 if turn.int8 else TOLERANCE[turn.dtype])
    others = torch.ones(64, dtype=torch.bool)
    others[slots.long()] = False
    after = [part for pair in kv.pairs for part in pair if part is not None]
    assert all(torch.equal(old[others], new[others]) for old, new in zip(before, after, strict=True))


def all_normed(part: torch.Tensor, norm: RMSNorm | None, dim: int) -> torch.Tensor:
    if norm is None or norm.weight.numel() == dim:
        return rms(part, norm)
    return rms(part.flatten(1), norm).view(part.shape)


def test_int8_is_the_same_as_the_plain_path_s() -> None:
    qkv = torch.randn(6, 3 * 16)
    kv = int8_kv(torch.zeros(8, 1, 16), torch.zeros(8, 1, 16))
    still = torch.ones(6, 8), torch.zeros(6, 8)
    slots = torch.arange(6, dtype=torch.int32)
    shape = HeadShape(1, 1, 16, 16)
    rope_and_store(qkv, *still, slots, kv, shape, q_norm=None, k_norm=None, dtype=torch.float32)
    for at, part, scale in ((1, kv.keys, kv.key_scale), (2, kv.values, kv.value_scale)):
        expected, expected_scale = to_int8(qkv.view(6, 3, 16)[:, at : at + 1])
        assert torch.equal(part[:6], expected)
        assert torch.equal(scale[:6], expected_scale)


def test_angles_are_those_of_the_formula() -> None:
    cos, sin = cos_sin(torch.tensor([0, 3]), torch.tensor([1.0, 0.1]), 2.0)
    assert torch.allclose(cos, 2 * torch.tensor([[1.0, 1.0], [math.cos(3), math.cos(0.3)]]))
    assert torch.allclose(sin, 2 * torch.tensor([[0.0, 0.0], [math.sin(3), math.sin(0.3)]]))
