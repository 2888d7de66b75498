"""docs/faults.md names a test for each row of the failure catalogue; each of them exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| what", "| ---"))]


def defined(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_named_test_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)
    assert len(named) > len(ROWS)
    assert [f"{file}::{name}" for file, name in named if name not in defined(file)] == []


def test_every_row_has_a_test_and_says_where_it_has_none():
    assert len(ROWS) >= 17
    for row in ROWS:
        simulated, real = (cell.strip() for cell in row.strip("|").split("|")[2:])
        assert "::test_" in simulated + real
        assert "::test_" in simulated or simulated == "real only"
        assert "::test_" in real or real == "simulated only"
        assert "tests/simulated/" not in real
        assert "tests/swarm/" not in simulated
