"""Sizes of captured steps, and how a step's integers are laid out for the device."""

from __future__ import annotations

import numpy as np
import pytest
from shoal.blocks.batch import Row
from shoal.blocks.kernels.tiles import FIELDS
from shoal.blocks.sizes import CHUNKS, PAGES, ROWS, Layout, PageArrays, exact_size, size_of, split

RUN, GROUP, SCRATCH = range(2, 6), 4, 99
LONG = tuple(range(70))


def decode(position: int, pages: tuple[int, ...] = LONG) -> Row:
    return Row(pages, position, 1)


def test_decodes_lead_and_one_token_after_a_chunk_is_a_chunk() -> None:
    rows = [decode(3), decode(9), Row(LONG, 0, 5), decode(7)]
    step = split(rows)
    assert step.decodes == tuple(rows[:2])
    assert step.chunks == tuple(rows[2:])


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 4), (9, 12), (256, 256)])
def test_the_smallest_size_that_holds_a_step(count: int, rows: int) -> None:
    size = size_of(RUN, split([decode(1023)] * count), GROUP)
    assert (size.start, size.stop, size.decodes, size.pages, size.chunk) == (2, 6, rows, 64, 0)
    assert size_of(RUN, split([decode(1024)] * count), GROUP).pages == 512


def test_a_step_that_no_size_holds_has_none() -> None:
    assert size_of(RUN, split([decode(1)] * (ROWS[-1] + 1)), GROUP) is None
    pages = tuple(range(PAGES[-1] + 1))
    assert size_of(RUN, split([Row(pages, PAGES[-1] * 16, 1)]), GROUP) is None
    assert size_of(RUN, split([Row(pages, 0, CHUNKS[-1] + 1)]), GROUP) is None


@pytest.mark.parametrize("padded", [True, False])
def test_every_token_finds_its_slot_and_padding_goes_to_the_scratch_page(padded: bool) -> None:
    a, b, c = (7, 3, 11), (20, 21, 22, 5), (1, 2)
    rows = [Row(a, 33, 1), Row(b, 50, 1), Row(c, 4, 21), Row(b, 16, 3)]
    step = split(rows)
    size = size_of(RUN, step, GROUP) if padded else exact_size(RUN, step, GROUP)
    layout = Layout(size)
    ints = np.full(layout.length, -7, dtype=np.int32)
    positions, slots, ends, table, tiles = parts = layout.cut(ints)
    layout.write(parts, step, GROUP, SCRATCH)
    at = [0, 1, *range(size.decodes, size.decodes + 24)]
    assert positions[at].tolist() == [33, 50, *range(4, 25), 16, 17, 18]
    chunks = [*range(16 + 4, 16 + 16), *range(2 * 16, 2 * 16 + 9), *range(21 * 16, 21 * 16 + 3)]
    assert slots[at].tolist() == [11 * 16 + 1, 5 * 16 + 2, *chunks]
    padding = sorted(set(range(size.tokens)) - set(at))
    assert bool(padding) == padded
    assert set(slots[padding]) <= {SCRATCH * 16}
    assert ends.tolist() == [34, 51] + [0] * (size.decodes - 2)
    assert table[0][:3].tolist() == list(a)
    assert table[1][:4].tolist() == list(b)
    _check_tiles(tiles, size.tiles, rows[2:])


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("decodes", "chunk"), [(1, 0), (2, 0), (3, 0), (0, 1), (1, 5), (2, 7), (3, 500)])
def test_every_part_begins_where_kernels_need_no_variant_for_it(padded: bool, decodes: int, chunk: int) -> None:
    """Triton compiles one more for what is no multiple of 16: a second's wait for all who are served."""
    rows = [decode(20 * index) for index in range(decodes)] + [Row(LONG, 0, chunk)] * (chunk > 0)
    size = size_of(RUN, split(rows), GROUP) if padded else exact_size(RUN, split(rows), GROUP)
    layout = Layout(size)
    ints = np.zeros(layout.length, dtype=np.int32)
    parts = layout.cut(ints)
    for number, part in enumerate(parts, 1):
        part[...] = number
    assert [int((ints == number).sum()) for number in range(1, 6)] == [part.size for part in parts]  # none overlaps
    assert all((part.ctypes.data - ints.ctypes.data) % 16 == 0 for part in parts if part.size)
    assert parts[3].shape[1] % 16 == 0


def _check_tiles(tiles: np.ndarray, count: int, rows: list[Row]) -> None:
    """Tiles cover every token of every row once, padding repeats one of them, and each finds its row's pages."""
    seen = {}
    for first, tokens, position, pages_at in tiles[: count * FIELDS].reshape(count, FIELDS).tolist():
        row, offset = (rows[0], first) if first < rows[0].count else (rows[1], first - rows[0].count)
        assert position == row.position + offset
        held = -(-row.end // 16)
        assert tiles[pages_at : pages_at + held].tolist() == list(row.pages[:held])
        seen[first] = tokens
    assert sorted(token for first, tokens in seen.items() for token in range(first, first + tokens)) == list(range(24))


def test_pages_of_a_tuple_are_read_once_and_those_of_a_list_each_time() -> None:
    arrays = PageArrays(64)
    pages = tuple(range(4))
    (one,), (other,) = arrays.of([Row(pages, 3, 1)]), arrays.of([Row(pages, 4, 1)])
    assert one.pages is other.pages
    assert (one.position, other.position) == (3, 4)
    changing = [5]
    arrays.of([Row(changing, 0, 1)])
    changing.append(6)
    assert list(arrays.of([Row(changing, 16, 1)])[0].pages) == [5, 6]


@pytest.mark.parametrize(
    "row",
    [Row((), 0, 1), Row((0, 64), 0, 1), Row((-1,), 0, 1), Row((0,), 16, 1), Row((0,), 0, 0), Row((0,), -1, 1)],
)
def test_rows_that_do_not_fit_are_refused_before_and_after_their_pages_are_known(row: Row) -> None:
    arrays = PageArrays(64)
    with pytest.raises(ValueError, match=r"row|pages"):
        arrays.of([row])
    if row.pages == (0,):
        arrays.of([Row(row.pages, 0, 1)])
        with pytest.raises(ValueError, match=r"row|pages"):
            arrays.of([row])


def test_a_forward_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        PageArrays(4).of([])
