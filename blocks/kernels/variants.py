"""Owns which variants of skinny.cu are worth measuring for a shape; integers only, knows no tensors and no device.

The tables hold what was fastest on an H100 among some hundred variants, for the matrices of 8B and 70B models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CHUNK = 64  # columns that the kernel takes as one
DENSE, FOUR_BIT, INT8 = range(3)  # forms of a matrix


@dataclass(frozen=True)
class Variant:
    """What is free for a shape; the kernel's words: MT, ABREAST, Q, blocks that share K, CTAS, PAIRED, ARRANGED."""

    tiles: int
    abreast: int
    chunks: int
    splits: int
    resident: int
    paired: bool = False
    arranged: bool = False

    @property
    def name(self) -> str:
        """How the tuner's file calls it."""
        numbers = (self.tiles, self.abreast, self.chunks, self.splits, self.resident)
        options = ("paired",) * self.paired + ("arranged",) * self.arranged
        return "-".join(("cuda", *map(str, numbers), *options))


def _plain(*numbers: tuple[int, int, int, int, int]) -> tuple[Variant, ...]:
    return tuple(Variant(*n) for n in numbers)


def _paired(*numbers: tuple[int, int, int, int, int]) -> tuple[Variant, ...]:
    return tuple(Variant(*n, paired=True) for n in numbers)


def _arranged(*numbers: tuple[int, int, int, int, int]) -> tuple[Variant, ...]:
    return tuple(Variant(*n, arranged=True) for n in numbers)


# For each form, up to how many rows of x, the variants. None for a dense matrix and many rows: the library is faster.
_TABLES: dict[int, dict[int, tuple[Variant, ...]]] = {
    DENSE: {
        8: _plain((1, 1, 2, 1, 2), (1, 1, 2, 2, 2), (1, 1, 2, 4, 2), (1, 1, 1, 4, 3)),
        16: _plain((2, 1, 2, 1, 1), (2, 2, 2, 2, 1)) + _arranged((1, 1, 2, 1, 2), (1, 1, 2, 2, 2)),
        32: _arranged((1, 1, 1, 1, 2), (1, 2, 1, 2, 2)),
    },
    FOUR_BIT: {
        4: _paired((2, 1, 2, 1, 1), (2, 1, 2, 2, 1), (2, 2, 2, 2, 1), (2, 2, 2, 4, 1), (1, 1, 2, 1, 2)),
        8: _plain((2, 1, 2, 1, 1), (1, 1, 4, 1, 1), (2, 2, 2, 2, 1)) + _arranged((1, 2, 4, 1, 1), (2, 1, 2, 1, 1)),
        16: _plain((2, 1, 2, 1, 1))
        + _arranged((2, 1, 2, 1, 1), (2, 1, 2, 2, 1), (2, 2, 2, 2, 1), (1, 2, 4, 1, 1), (4, 4, 2, 1, 1)),
        32: _arranged((2, 4, 2, 1, 1), (2, 1, 2, 1, 1), (2, 1, 2, 2, 1), (2, 2, 2, 2, 1), (1, 2, 2, 1, 1)),
        64: _arranged((2, 2, 1, 1, 1), (2, 4, 1, 1, 1), (1, 2, 2, 1, 1), (2, 1, 1, 1, 1), (2, 1, 1, 2, 1)),
    },
    INT8: {
        8: _plain((1, 1, 2, 1, 2), (1, 1, 2, 2, 2), (1, 1, 2, 4, 2)),
        16: _plain((2, 1, 2, 1, 1), (2, 2, 2, 2, 1)) + _arranged((1, 1, 2, 1, 2)),
        32: _plain((2, 2, 2, 2, 1)) + _arranged((1, 4, 2, 1, 2), (2, 2, 2, 2, 1), (2, 1, 2, 1, 1)),
        64: _arranged((2, 4, 2, 1, 1), (2, 2, 2, 2, 1), (2, 2, 2, 1, 1)),
    },
}


# For experts' matrices, up to how many rows of x an expert on average, a variant and how many rows it takes at a time.
_OF_EXPERTS: dict[int, tuple[tuple[float, Variant, int], ...]] = {
    FOUR_BIT: (
        (1.5, Variant(1, 1, 2, 1, 2, paired=True), 4),
        (6, Variant(2, 1, 2, 1, 1), 8),
        (12, Variant(2, 2, 2, 1, 1), 16),
        (32, Variant(2, 4, 2, 1, 1), 32),
        (math.inf, Variant(2, 4, 1, 1, 1), 64),
    ),
    INT8: (
        (6, Variant(1, 1, 2, 1, 2), 8),
        (12, Variant(1, 1, 2, 1, 2), 16),
        (24, Variant(2, 2, 2, 1, 1), 32),
        (math.inf, Variant(2, 4, 1, 1, 1), 64),
    ),
}


def of_experts(form: int, n: int, k: int, mean: float, *, gated: bool) -> tuple[Variant, int] | None:
    """For experts' matrices [n, k], quantized, that meet `mean` rows each: the variant, and how many rows it takes at a
    time. None where the kernel cannot run, or is not faster: weights of 16 bits."""
    width = n // 2 if gated else n
    if form not in _OF_EXPERTS or k % CHUNK or width < (8 if gated else 16):
        return None
    found = (
        (fitted, rows)
        for most, variant, rows in _OF_EXPERTS[form]
        if mean <= most and not (k % (2 * CHUNK) and variant.paired)
        and (fitted := _fit(variant, width, k, gated=gated, partials=False)) is not None
    )  # fmt: skip
    return next(found, None)


def variants(form: int, n: int, k: int, rows: int, *, gated: bool, partials: bool) -> list[Variant]:
    """At most six for a matrix [n, k] and so many rows; none where the kernel cannot run or never wins."""
    width = n // 2 if gated else n
    if k % CHUNK or width < (8 if gated else 16):
        return []
    fitted = (_fit(v, width, k, gated=gated, partials=partials) for v in _table(form, k, rows))
    return list(dict.fromkeys(v for v in fitted if v is not None))


def _table(form: int, k: int, rows: int) -> tuple[Variant, ...]:
    for most, found in _TABLES[form].items():
        if rows <= most and not (k % (2 * CHUNK) and found[0].paired):
            return found
    return ()


def _fit(variant: Variant, width: int, k: int, *, gated: bool, partials: bool) -> Variant | None:
    """The variant with a step and a tile that divide the shape; None if it splits K more than it may or can."""
    chunks = k // (CHUNK * (2 if variant.paired else 1))
    step = next(q for q in (4, 2, 1) if q <= variant.chunks and chunks % q == 0)
    tiles, abreast = variant.tiles, variant.abreast
    while tiles * abreast * (8 if gated else 16) > width:
        tiles, abreast = (tiles, abreast // 2) if abreast > 1 else (tiles // 2, 1)
    if variant.splits > 1 and (gated or not partials or chunks // step * abreast < 8 * variant.splits):
        return None
    return Variant(tiles, abreast, step, variant.splits, variant.resident, variant.paired, variant.arranged)
