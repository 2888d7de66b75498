"""Throughput at start: measured once, kept, and a forward before the first user either way."""

from __future__ import annotations

import json
import logging

import pytest
from full_disk import full_disk
from shoal.peer.measure import MAX_AGE_S, measured

from tests.sim.toy import ToyEngine

FACTS = {"model": "toy", "device": "none"}


async def test_measured_once_and_then_read_from_the_cache(tmp_path):
    engine = ToyEngine(0, 2, step_s=0.001)
    first, cached = await measured(engine, "float32", FACTS, tmp_path)
    assert not cached
    assert 0.0005 <= first.decode_s < 0.05  # two blocks, a millisecond a step and a little more
    assert 0 < first.prefill_s < first.decode_s
    runs = len(engine.batches)
    again, cached = await measured(engine, "float32", FACTS, tmp_path)
    assert cached
    assert again == first
    assert 0 < len(engine.batches) - runs < 5  # warmed up, not measured


async def test_other_facts_and_broken_files_are_measured_anew(tmp_path):
    engine = ToyEngine(0, 1, step_s=0.0)
    await measured(engine, "float32", FACTS, tmp_path)
    assert not (await measured(engine, "float32", {**FACTS, "device": "other"}, tmp_path))[1]
    for path in tmp_path.glob("*.json"):
        path.write_text("{")
    assert not (await measured(engine, "float32", FACTS, tmp_path))[1]
    assert all(json.loads(path.read_text()) for path in tmp_path.glob("*.json") if path.read_text() != "{")


async def test_a_folder_that_cannot_be_written_costs_only_the_cache(tmp_path):
    file = tmp_path / "file"
    file.touch()
    throughput, cached = await measured(ToyEngine(0, 1, step_s=0.0), "float32", FACTS, file / "cache")
    assert throughput.decode_s > 0
    assert not cached


async def test_a_full_disk_costs_only_the_cache_and_one_line_says_so(tmp_path, caplog):
    with caplog.at_level(logging.INFO), full_disk():
        _, cached = await measured(ToyEngine(0, 1, step_s=0.0), "float32", FACTS, tmp_path)
    assert not cached
    assert list(tmp_path.iterdir()) == []
    (line,) = (record.getMessage() for record in caplog.records)
    assert "the next start measures again" in line
    assert str(tmp_path) in line


@pytest.mark.parametrize(("older_s", "kept"), [(0.9 * MAX_AGE_S, True), (1.1 * MAX_AGE_S, False), (-3600.0, False)])
async def test_a_machine_that_was_busy_is_measured_anew_after_a_day(tmp_path, older_s: float, kept: bool):
    """Nor do figures count that a clock since set right dates to the future."""
    await measured(ToyEngine(0, 1, step_s=0.0), "float32", FACTS, tmp_path)
    (path,) = tmp_path.iterdir()
    stored = json.loads(path.read_text())
    slow = {"decode_s": 9.0, "measured_at": stored["measured_at"] - older_s}
    path.write_text(json.dumps({**stored, **slow}))
    for turn in range(2):
        found, cached = await measured(ToyEngine(0, 1, step_s=0.0), "float32", FACTS, tmp_path)
        assert cached == (kept or turn == 1)
        assert (found.decode_s == 9.0) == kept
