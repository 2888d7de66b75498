"""One minute of the chaos benchmark: real peers are killed, stopped, drained and restarted under four clients."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.swarm, pytest.mark.alone, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
BENCH = [sys.executable, "-m", "tests.forks", "scripts/benches/chaos.py"]


def test_a_minute_of_chaos_loses_no_token(tmp_path):
    found = tmp_path / "found.json"
    done = subprocess.run(
        [*BENCH, "--minutes", "1", "--seed", "1", "--json", str(found)],
        capture_output=True, text=True, check=False, timeout=380, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(found.read_text())
    assert (figures["failed"], figures["wrong"]) == (0, 0)
    assert figures["runs"] >= 4
    assert figures["faults"] >= 4
    assert figures["repairs"] >= 1
    struck = [kind for kind in ("kill", "hang", "drain", "restart") if f"stall_p99_s_{kind}" in figures]
    assert struck
    assert all(0 < figures[f"stall_p50_s_{kind}"] <= figures[f"stall_max_s_{kind}"] for kind in struck)
