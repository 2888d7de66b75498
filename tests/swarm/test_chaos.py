"""One minute of the chaos benchmark: real peers are killed, stopped, drained and restarted under four clients."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.steadiness import in_time

pytestmark = [pytest.mark.swarm, pytest.mark.alone, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
KINDS = ("kill", "hang", "drain", "restart")
FAULTS, LEAST_FAULTS = 12, 8  # where peers take long to come back, some faults find nobody who can be spared
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
    assert figures["faults"] + figures["skipped"] == FAULTS
    in_time(figures["faults"] >= LEAST_FAULTS and all(figures[f"faults_{kind}"] for kind in KINDS), figures)
    in_time(figures["runs"] >= 4 and figures["repairs"] >= 1, figures)
    in_time(all(0 < figures[f"stall_p50_s_{kind}"] <= figures[f"stall_max_s_{kind}"] for kind in KINDS), figures)
