"""Real `shoal` processes for tests: started, listened to, and ended; and a way to see whether any is left."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, Self

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence

MARK = "SHOAL_TEST_MARK"
START_S = 90.0
END_S = 25.0


class Running:
    """One `shoal` command with its JSON lines."""

    def __init__(self, argv: Sequence[str], mark: str) -> None:
        self.argv = list(argv)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shoal.client.cli.main", *argv],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
            env={**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.errors: list[str] = []
        self._told = False
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._readers = [threading.Thread(target=self._read_out), threading.Thread(target=self._read_errors)]
        for reader in self._readers:
            reader.start()

    def event(self, key: str, value: object | None = None, timeout_s: float = START_S) -> dict[str, Any]:
        """The next JSON line that has `key` (with `value`)."""
        end = time.monotonic() + timeout_s
        while (line := self._lines.get(timeout=max(0.0, end - time.monotonic()))) is not None:
            found = json.loads(line) if line.startswith("{") else {}
            if key in found and value in (None, found[key]):
                return found
        raise AssertionError(f"{self.argv} ended: {self.errors[-5:]}")

    def tell(self, number: signal.Signals) -> None:
        """Send a signal, once: a second one means to leave at once."""
        if not self._told and self.process.poll() is None:
            self._told = True
            self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit status."""
        self.tell(number)
        try:
            self.process.wait(END_S)
        finally:
            self.process.kill()
            for reader in self._readers:
                reader.join()
            for pipe in (self.process.stdout, self.process.stderr):
                pipe.close()
        return self.process.returncode

    def _read_out(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        for line in self.process.stderr:
            self.errors.append(line.rstrip())


class Processes:
    """Starts commands and ends them all, newest first; every process of theirs carries `mark` in its environment."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.running: list[Running] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for running in reversed(self.running):
            running.tell(signal.SIGTERM)  # all of them first: they then leave at the same time
        for running in reversed(self.running):
            running.end()

    def start(self, *argv: str) -> Running:
        running = Running(argv, self.mark)
        self.running.append(running)
        return running

    def run(self, *argv: str, stdin: str = "", timeout_s: float = 100.0) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "shoal.client.cli.main", *argv],
            capture_output=True, text=True, check=False, timeout=timeout_s, input=stdin,
            env={**os.environ, MARK: self.mark, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def left(self, patience_s: float = 0.0) -> dict[int, str]:
        """Process ids and command lines of those with our mark that still run after `patience_s`."""
        end = time.monotonic() + patience_s
        while (found := marked(self.mark)) and time.monotonic() < end:
            time.sleep(0.1)
        return found


def marked(mark: str) -> dict[int, str]:
    """Process ids and command lines of all that carry `mark`, whoever their parent is by now."""
    found = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
