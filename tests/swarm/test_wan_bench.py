"""What `scripts/bench wan` judges by, checked by hand; and the whole benchmark, small."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benches"))

import _wan_ideal
import wan
from _wan_ideal import Compute, Legs, ideal_decode, ideal_prefill, unpipelined_prefill
from _wan_recovery import HANG_GOAL_S, verdict
from netlab.namespace import why_not

from tests.steadiness import in_time

ROOT = Path(__file__).parents[2]
KILL_MARGIN_S = 0.5  # of a bound of some 0.06 s: below, the machine decides; a death that silence has to tell takes 1 s
COMPUTE = Compute(decode=(0.001, 0.002, 0.003), prefill=(0.1, 0.2, 0.3), ends=0.004, chunks=10, apart=0.008)


def test_an_ideal_step_is_its_legs_and_its_compute():
    assert ideal_decode(COMPUTE, Legs(0.05, 0.0, 1000)) == pytest.approx(4 * 0.05 + 0.010)
    assert ideal_decode(COMPUTE, Legs(0.0, 8000.0, 1000)) == pytest.approx(4 * 1.0 + 0.010)


def test_an_ideal_prompt_keeps_the_slowest_part_busy(monkeypatch):
    monkeypatch.setattr(_wan_ideal.os, "cpu_count", lambda: 8)
    by_compute, by_line = Legs(0.05, 0.0, 1000), Legs(0.05, 8e6, 1000)
    assert ideal_prefill(COMPUTE, by_compute, 1000) == pytest.approx(0.3 + 0.3 / 10 + 0.2)
    assert ideal_prefill(COMPUTE, by_line, 1000) == pytest.approx(1.0 + (0.6 + 2.0) / 10 + 0.2)
    assert unpipelined_prefill(COMPUTE, by_line, 1000) == pytest.approx(0.6 + 3.0 + 0.2)
    monkeypatch.setattr(_wan_ideal.os, "cpu_count", lambda: 1)
    assert ideal_prefill(COMPUTE, by_compute, 1000) == pytest.approx(0.6 + 0.3 / 10 + 0.2)


@pytest.mark.parametrize(
    ("kill_s", "hang_s", "said"),
    [(0.5, 3.0, "ok"), (0.51, 1.0, "missed: kill"), (0.1, 3.01, "missed: hang"), (9.0, 9.0, "missed: kill, hang")],
)
def test_what_recovery_misses_is_named_in_the_table(capsys, kill_s, hang_s, said):
    figures = dict.fromkeys((f"{part}_s_lan" for part in ("connect", "replay", "two_round_trips")), 0.1)
    figures |= {"stall_kill_s_lan": kill_s, "bound_s_lan": 0.5, "stall_hang_s_lan": hang_s}
    assert verdict(figures, "lan") == said
    setting = SimpleNamespace(name="lan")
    wan.show(figures, SimpleNamespace(models=["tiny"], settings=[setting], only=["recovery"]))
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("lan"))
    assert row.endswith(f"  {said}")


@pytest.mark.swarm
@pytest.mark.calm
@pytest.mark.timeout(160)
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_every_part_runs_small(tmp_path):
    found = tmp_path / "found.json"
    command = [sys.executable, "-m", "tests.forks", "scripts/benches/wan.py", "--tiny", "--json", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=150, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    figures = json.loads(found.read_text())
    setting = "1gbit_5ms"
    goals = {f"{part}_over_ideal_{setting}" for part in ("decode", "prefill")}
    stalls = {f"{part}_s_{setting}" for part in ("stall_kill", "stall_hang", "connect", "replay", "bound")}
    assert goals | stalls <= set(figures)
    assert all(isinstance(value, float) for value in figures.values())
    assert figures[f"tiny_decode_ideal_ms_{setting}"] > 10.0  # four legs of 2.5 ms
    assert figures[f"decode_over_ideal_{setting}"] >= 0.9
    assert figures[f"stall_hang_s_{setting}"] > 1.0
    in_time(figures[f"stall_kill_s_{setting}"] <= figures[f"bound_s_{setting}"] + KILL_MARGIN_S, figures)
    in_time(figures[f"stall_hang_s_{setting}"] <= HANG_GOAL_S, figures)
