"""Slow work beside the event loop that nobody waits for any more, and processes that end in the middle of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest
from shoal.dht.threads import in_thread

PATIENCE_S = 20.0


async def test_it_gives_what_the_work_gives_or_raises() -> None:
    assert await in_thread(int, "11", base=2) == 3
    with pytest.raises(ValueError, match="invalid literal"):
        await in_thread(int, "eleven")
    assert await in_thread(threading.current_thread) is not threading.current_thread()


@pytest.mark.parametrize("failing", [False, True])
def test_who_stops_waiting_goes_on_at_once_and_the_loop_ends(failing: bool) -> None:
    release, threads = threading.Event(), []

    def work() -> None:
        threads.append(threading.current_thread())
        release.wait(PATIENCE_S)
        if failing:
            raise RuntimeError("of no interest to anybody")

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await in_thread(work)

    began = time.monotonic()
    asyncio.run(main())
    took_s = time.monotonic() - began
    release.set()
    threads[0].join(PATIENCE_S)
    assert took_s < PATIENCE_S / 2


ENDING = """
import atexit, sys, threading
from shoal.client.cli import main
from shoal.dht.ending import leave_behind

def command(_):
    thread = threading.Thread(target=threading.Event().wait, args=({work_s},), daemon=True)
    thread.start()
    leave_behind(thread)
    thread.join(0.5)
    sys.stdout.write("said")
    return 3

atexit.register(sys.stdout.write, ", and taken down")
main.show_version, sys.argv = command, ["shoal", "--version"]
sys.exit(main.main())
"""


@pytest.mark.parametrize(("work_s", "said"), [(0, "said, and taken down"), (60, "said")])
def test_a_process_is_not_taken_down_under_a_thread_that_works(work_s: float, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING.format(work_s=work_s)], capture_output=True, text=True, check=False, timeout=50
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, said, "")
