"""Commands that start as forks, beside the same commands that start as users start them: others see no difference."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.forks.popen import forked, own_terminal
from tests.swarm.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.swarm, pytest.mark.executed, pytest.mark.timeout(180)]

SHOAL = [sys.executable, "-m", "shoal.client.cli.main"]
CHILD = [sys.executable, "-m", "shoal.client.cli.child"]
BOOTSTRAP = ["bootstrap", "--json", "--model", "demo"]
WAYS = {"executed": nullcontext, "forked": forked}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are never forked."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def said(way: str, *argv: str, stdin: str = "", **options: object) -> tuple[int, str, str]:
    with WAYS[way]():
        done = subprocess.run([*SHOAL, *argv], input=stdin, capture_output=True, text=True, check=False, **options)
    return done.returncode, done.stdout, done.stderr


@contextmanager
def running(way: str, argv: list[str], **options: object) -> Iterator[subprocess.Popen]:
    """A bootstrap node that has said its invite."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with WAYS[way]():
        process = subprocess.Popen([*argv, *BOOTSTRAP], **pipes | options)
    with process:
        assert b"invite" in process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_a_fork_is_used() -> None:
    """So that the rest compares what is different."""
    with running("forked", SHOAL) as fork, running("executed", SHOAL) as other:
        maps = [Path(f"/proc/{process.pid}/maps").read_text() for process in (fork, other)]
    assert ["libtorch_python" in text and "tokenizers" in text for text in maps] == [True, False]


@pytest.mark.parametrize(
    "argv", [["--version"], [], ["nonsense"], ["peer", "--no-such"], ["status", "--join", "shoal1x"]]
)
def test_output_and_exit_status_are_the_same(argv: list[str]) -> None:
    assert said("forked", *argv) == said("executed", *argv)


def test_an_error_s_trace_and_the_folder_are_its_own(tmp_path: Path) -> None:
    env = {**os.environ, "SHOAL_DEBUG": "1"}
    argv = "peer", "--model", "./here", "--join", "nonsense"
    found = [said(way, *argv, env=env, cwd=tmp_path) for way in WAYS]
    assert [status for status, _, _ in found] == [1, 1]
    assert len({text.splitlines()[-1] for _, _, text in found}) == 1
    assert all("Traceback" in text for _, _, text in found)


def at_rest(process: psutil.Process) -> int:
    """Its open descriptors, without those that are open for a moment."""
    counts = []
    for _ in range(10):
        counts.append(process.num_fds())
        time.sleep(0.05)
    return min(counts)


def seen(way: str, **options: object) -> dict[str, object]:
    """What others see of a running command."""
    env = {**os.environ, "SHOAL_TEST_MARK": "seen", "OMP_NUM_THREADS": "1"}
    with running(way, SHOAL, env=env, **options) as process:
        it = psutil.Process(process.pid)
        signals = [line for line in Path(f"/proc/{it.pid}/status").read_text().splitlines() if line.startswith("Sig")]
        return {
            "parent": it.ppid(), "arguments": [*filter(None, it.cmdline())], "mark": it.environ()["SHOAL_TEST_MARK"],
            "room": "FORKS_ROOM" in it.environ(), "folder": it.cwd(), "descriptors": at_rest(it),
            "group": os.getpgid(it.pid) == it.pid, "session": os.getsid(it.pid) == it.pid, "signals": signals[1:],
            "in front": in_front(it.pid) == it.pid,
        }  # fmt: skip


def in_front(pid: int) -> int:
    """Which group of processes has the terminal of this one: who hears a Ctrl-C there."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[5])


@pytest.mark.parametrize(
    ("options", "terminal"),
    [({}, False), ({"start_new_session": True, "cwd": "/"}, False), ({"start_new_session": True}, True)],
    ids=["plain", "own session", "own terminal"],
)
def test_others_see_no_difference(options: dict, terminal: bool) -> None:
    found = []
    for way in ("forked", "executed"):
        here, there = pty.openpty()
        own = {"preexec_fn": own_terminal, "stdin": there} if terminal else {}
        found.append(seen(way, **options, **own))
        for end in (here, there):
            os.close(end)
    fork, other = found
    assert fork == other
    assert (fork["parent"], fork["mark"], fork["session"]) == (os.getpid(), "seen", bool(options))
    assert fork["in front"] == terminal


def test_signals_end_it_and_its_parent_hears_how() -> None:
    for number, status in ((signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
        with running("forked", SHOAL) as process:
            process.send_signal(number)
            assert process.wait(20) == status


def test_a_child_leaves_when_its_stdin_ends() -> None:
    with running("forked", CHILD) as process:
        process.stdin.close()
        assert process.wait(20) == 0


def test_what_is_left_is_found_by_its_mark() -> None:
    with forked(), Processes() as processes:
        node = processes.start(*BOOTSTRAP)
        node.event("invite")
        assert " bootstrap " in processes.left()[node.process.pid]
    assert processes.left() == {}
