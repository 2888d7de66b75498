"""Ctrl-C in a command that waits: heard at once, whichever thread the kernel gives it to; cleaned up; status 130."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

COMMAND = """
import asyncio, signal, sys, threading, time
from shoal.client.cli import terminal
from shoal.client.cli.main import run

def press():
    for _ in range({presses}):
        time.sleep(0.3)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

async def work():
    threading.Thread(target=press, daemon=True).start()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(60))
            await asyncio.sleep(60)
    finally:
        await asyncio.sleep({cleanup_s})
        {failure}
        print("closed", flush=True)

if not {uvloop}:
    terminal.importlib.util.find_spec = lambda name: None
sys.exit(run(lambda: lambda argv: terminal.run_async(work()), []))
"""


def interrupted(**how) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command that would wait for a minute."""
    began = time.monotonic()
    how = {"presses": 1, "cleanup_s": 0.01, "failure": "", "uvloop": True, **how}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(**how)], capture_output=True, text=True, check=False, timeout=50
    )
    assert time.monotonic() - began < 20
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("uvloop", [True, False])
def test_it_ends_the_command_after_cleaning_up(uvloop: bool) -> None:
    assert interrupted(uvloop=uvloop) == (130, "closed\n", "")


@pytest.mark.parametrize("uvloop", [True, False])
def test_a_second_one_does_not_wait_for_that(uvloop: bool) -> None:
    assert interrupted(presses=2, cleanup_s=60, uvloop=uvloop) == (130, "", "")


def test_what_breaks_on_the_way_out_is_not_told() -> None:
    assert interrupted(failure="raise RuntimeError") == (130, "", "")
