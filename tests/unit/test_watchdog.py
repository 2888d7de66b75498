"""A device that does not come back: who waits is told, and the program ends even if its loop waits as well."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest
import torch
from shoal.blocks.checkpoint import resolve
from shoal.blocks.kv import PAGE_TOKENS
from shoal.blocks.span import SpanOptions, load_span
from shoal.peer.engine import DeviceEngine, Piece
from shoal.peer.order import EngineFault
from shoal.peer.watchdog import Watchdog
from tiny_models import save_tiny

LIMIT_S = 0.5


@pytest.fixture(scope="module")
def span(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_tiny("llama", folder)
    return load_span(resolve(str(folder)), range(2), SpanOptions(kv_pages=4, dtype=torch.float32))


@pytest.fixture
def engine(span):
    engine = DeviceEngine(span, PAGE_TOKENS)
    yield engine
    engine.close()


def piece() -> Piece:
    return Piece(bytearray(4 * 64), "float32", 0, 1, (0,), 0, 0, 2, 1)


async def test_who_waits_for_a_device_that_hangs_is_told_and_nobody_waits_for_it_again(engine, monkeypatch):
    last_resort, over = [], threading.Event()
    watchdog = Watchdog(engine, LIMIT_S, last_resort.append)
    monkeypatch.setattr(engine, "_forward", lambda _batch: over.wait(30))
    try:
        waiting = [asyncio.ensure_future(engine.run([piece()])) for _ in range(2)]
        done, _ = await asyncio.wait(waiting, timeout=20)
        assert len(done) == 2
        assert all("not come back" in str(task.exception()) for task in done)
        assert engine.broken
        assert len(last_resort) == 1
        with pytest.raises(EngineFault, match="lost"):
            await engine.run([piece()])
        with pytest.raises(EngineFault, match="lost"):
            engine.run_now([piece()])
        began = time.monotonic()
        engine.close()
        assert time.monotonic() - began < 5  # of the 30 s for which a thread at work is waited
    finally:
        over.set()
        watchdog.stop()


async def test_an_idle_device_and_many_short_steps_are_no_matter(engine):
    last_resort = []
    watchdog = Watchdog(engine, LIMIT_S, last_resort.append)
    end = time.monotonic() + 2 * LIMIT_S
    while time.monotonic() < end:
        await engine.run([piece()])
    await asyncio.sleep(2 * LIMIT_S)
    watchdog.stop()
    assert not last_resort
    assert not engine.broken


BLOCKED = """
import threading, sys
from shoal.peer import watchdog

class Engine:
    def under_way_s(self): return 1.0
    def give_up(self, why): print("given up", flush=True)

watchdog.LEAVE_S = 0.5
watchdog.Watchdog(Engine(), 0.2)
threading.Event().wait(60)
print("came back")
"""


def test_a_program_whose_loop_waits_too_is_ended():
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "given up\n")
    assert "Traceback" not in done.stderr
    assert "Thread" not in done.stderr
    assert "has not come back from a step for 1 s" in done.stderr
