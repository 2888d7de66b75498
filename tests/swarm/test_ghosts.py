"""`scripts/bench ghosts`, small: over real connections, announcements of peers that are not there cost little time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lab_swarm import needs_network

from tests.steadiness import in_time

pytestmark = [pytest.mark.swarm, pytest.mark.alone, pytest.mark.timeout(120), needs_network]

ROOT = Path(__file__).parents[2]
BENCH = [sys.executable, "-m", "tests.forks", "scripts/benches/ghosts.py"]
GHOSTS = 100
KINDS = ("closed", "black_hole")


def test_100_ghosts_cost_a_real_client_at_most_a_fifth_more_time_to_the_first_token(tmp_path):
    found = tmp_path / "found.json"
    command = [*BENCH, "--ghosts", str(GHOSTS), "--runs", "7", "--peers", "2", "--json", str(found), "--kinds"]
    done = subprocess.run([*command, *KINDS], capture_output=True, text=True, check=False, timeout=110, cwd=ROOT)
    assert found.exists(), done.stderr
    figures = json.loads(found.read_text())
    assert all(figures[f"seen_{kind}"] == GHOSTS for kind in KINDS)
    in_time(all(figures[f"over_{kind}"] <= 1.2 for kind in KINDS), figures)
    assert done.returncode == 0
