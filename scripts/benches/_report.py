"""What every benchmark prints: an aligned table on stdout and one flat JSON object in a file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, figures to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, ["-" * width for width in widths], *rows):
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([row[0].ljust(len(first)), *rest]))


def write_json(path: Path | None, figures: Mapping[str, float | int | str]) -> None:
    """One flat object, if a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(dict(figures), indent=2) + "\n")
