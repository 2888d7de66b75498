"""Throughput at start: measured once, kept, and a forward before the first user either way."""

from __future__ import annotations

import json

from shoal.peer.measure import measured

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
