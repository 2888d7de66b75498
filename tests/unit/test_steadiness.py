"""What becomes of tests that fail while the machine's host lets others have the processors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.steadiness import Processors

ROOT = Path(__file__).parents[2]
TESTS = """
import asyncio, os, pytest, subprocess
from tests import steadiness
from tests.steadiness import in_time

steadiness.Processors.withheld_since = lambda *_: float(os.environ["WITHHELD"])
runs = []

@pytest.fixture(scope="module")
def fresh():
    runs.append("made")
    yield
    runs.append("ended")

@pytest.mark.alone
def test_passes_in_the_end(fresh):
    in_time(len(runs) > 3, runs)

@pytest.mark.alone
async def test_is_always_late():
    async with asyncio.TaskGroup():
        in_time(False, 3.2)

@pytest.mark.calm
def test_is_wrong():
    runs.append("wrong")
    assert runs.count("wrong") > 1

@pytest.mark.alone
async def test_is_late_and_wrong_at_once():
    runs.append("both")
    async def check(tokens):
        assert tokens == [1, 2]
    async def hurry():
        in_time(False)
    if runs.count("both") == 1:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(check([1, 3]))
            tasks.create_task(hurry())

@pytest.mark.calm
def test_waits_for_nothing():
    runs.append("waits")
    if runs.count("waits") == 1:
        raise TimeoutError
    if runs.count("waits") == 2:
        raise subprocess.TimeoutExpired("shoal", 20.0)

@pytest.mark.calm
def test_waits_in_vain():
    raise TimeoutError

@pytest.mark.calm
def test_is_late_and_then_wrong():
    runs.append("late")
    in_time(runs.count("late") > 1)
    assert False

def test_minds_nothing():
    in_time(False)

@pytest.mark.alone
@pytest.mark.timeout(0.5)
def test_has_no_time_left():
    runs.append("slow")
    __import__("time").sleep(0.3)
    in_time(runs.count("slow") > 1)
"""


def outcomes(folder: Path, withheld: float) -> tuple[dict[str, str], str]:
    """By test: how it ended; and all that was printed."""
    (folder / "test_some.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\ntimeout = 60\nmarkers =\n  alone\n  calm\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-rs",
        "-p",
        "tests.steadiness",
        "-p",
        "no:cacheprovider",
        str(folder),
    ]
    env = {**os.environ, "WITHHELD": str(withheld), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT, env=env)
    lines = [line.split("::test_")[1].split() for line in done.stdout.splitlines() if "%]" in line]
    return {line[0]: line[1] for line in lines}, done.stdout


def test_on_a_starved_machine_what_minds_it_runs_again_and_lateness_alone_is_no_failure(tmp_path: Path) -> None:
    found, said = outcomes(tmp_path, 0.4)
    assert found == {
        "passes_in_the_end": "PASSED",
        "is_always_late": "SKIPPED",
        "is_wrong": "FAILED",
        "is_late_and_wrong_at_once": "FAILED",
        "waits_for_nothing": "PASSED",
        "waits_in_vain": "FAILED",
        "is_late_and_then_wrong": "FAILED",
        "minds_nothing": "FAILED",
        "has_no_time_left": "SKIPPED",
    }
    assert "no verdict on its time: the host withheld 40% of the processors' time" in said
    again = [line.split("::test_")[1].split(":")[0] for line in said.splitlines() if line.startswith("RAN AGAIN")]
    assert again == [
        *["passes_in_the_end"] * 2, *["is_always_late"] * 2, *["waits_for_nothing"] * 2, *["waits_in_vain"] * 2,
        "is_late_and_then_wrong",
    ]  # fmt: skip


def test_on_a_machine_that_is_there_every_failure_is_one_at_once(tmp_path: Path) -> None:
    found, said = outcomes(tmp_path, 0.05)
    assert set(found.values()) == {"FAILED"}
    assert "RAN AGAIN" not in said


@pytest.mark.parametrize(("busy", "stolen", "share"), [(0, 0, 0.0), (90, 10, 0.1), (0, 5, 1.0)])
def test_the_share_is_of_what_was_asked_for(busy: int, stolen: int, share: float) -> None:
    assert Processors(100 + busy, 7 + stolen).withheld_since(Processors(100, 7)) == share


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="a kernel without /proc/stat")
def test_the_kernel_counts() -> None:
    before = Processors.now()
    while Processors.now().busy == before.busy:
        sum(range(100_000))
    assert Processors.now().stolen >= before.stolen
