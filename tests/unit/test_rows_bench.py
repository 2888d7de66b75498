"""The benchmark of layouts in which our C reads matrices, on small ones."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

BENCH = str(Path(__file__).parents[2] / "scripts" / "bench")


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="there is no C compiler")
def test_it_says_all_its_figures(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    command = [BENCH, "rows", "--mib", "1", "--repeats", "1", "--dtype", "bfloat16", "--json", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    figures = json.loads(found.read_text())
    for width in (512, 1024, 2048, 4096):
        assert f"{width} x 16" in done.stdout
        for tokens in (1, 2, 4, 8, 16):
            assert all(figures[f"{way}_ms_{width}_{tokens}"] > 0 for way in ("near", "far", "torch"))
            assert figures[f"far_over_near_{width}_{tokens}"] > 0


def test_a_matrix_without_rows_is_refused_in_one_line() -> None:
    done = subprocess.run([BENCH, "rows", "--mib", "0"], capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("--mib, --repeats and --threads start at 1")
