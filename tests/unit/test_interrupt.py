"""Ctrl-C in a command that starts or waits: heard at once, whichever thread the kernel gives it to; cleaned up; status
130."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from typing import Self

import pytest
from shoal.client.cli import children, demo
from shoal.client.cli.main import main, run
from shoal.dht.identity import Identity
from shoal.dht.invite import Invite

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
    {besides}
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
    how = {"presses": 1, "cleanup_s": 0.01, "failure": "", "besides": "", "uvloop": True, **how}
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


def test_a_second_one_does_not_wait_for_threads_either() -> None:
    stuck = "asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)"
    assert interrupted(presses=2, besides=stuck) == (130, "closed\n", "")


def test_what_breaks_on_the_way_out_is_not_told() -> None:
    assert interrupted(failure="raise RuntimeError") == (130, "", "")


class Alone:
    """Stands for the demo's processes, of which none is started, and for one of them."""

    def __init__(self, _environment: object) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def start(self, *_: object) -> Self:
        return self

    async def event(self, name: str, *_: object) -> dict[str, str]:
        if name != "invite":
            await asyncio.sleep(60)
        return {"invite": NOWHERE}


def test_a_demo_does_not_wait_for_the_model_that_it_reads_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, enough, threads = threading.Event(), threading.Event(), []

    def read() -> None:
        threads.append(threading.current_thread())
        reading.set()
        enough.wait(20)

    async def swarm() -> None:
        async with demo._swarm("cpu"):
            raise AssertionError("no peer came online")

    async def main() -> None:
        task = asyncio.create_task(swarm())
        assert await asyncio.to_thread(reading.wait, 20)
        task.cancel()

    monkeypatch.setattr(children, "Children", Alone)
    monkeypatch.setattr(demo, "_client_model", read)
    began = time.monotonic()
    asyncio.run(main())
    took_s = time.monotonic() - began
    enough.set()
    threads[0].join(20)
    assert took_s < 10


# -- while it starts --------------------------------------------------------------------------------------------------

STARTING = """
import os, signal, sys

class Presses:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:  # as some libraries do around what they can do without
                print("caught by", name, flush=True)

signal.signal(signal.SIGINT, signal.{handler})
sys.meta_path.insert(0, Presses())
from shoal.client.cli.main import main
sys.exit(main({argv!r}))
"""
NOWHERE = Invite("s", "demo", (f"/ip4/127.0.0.1/tcp/9/p2p/{Identity.generate().peer_id}",)).encode()
JOIN = ["--join", NOWHERE]


def starting(module: str, argv: list[str], handler: str = "default_int_handler") -> tuple[int, str, str]:
    """The same of a command during which Ctrl-C is pressed while `module` is imported."""
    code = STARTING.format(module=module, argv=argv, handler=handler)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("module", "argv"),
    [
        ("shoal.client.cli.commands", ["--help"]),
        ("shoal.client.cli.commands", ["peers"]),
        ("shoal.blocks.lean", ["--version"]),
        ("shoal.peer.steering", ["peers"]),
        ("torch", ["generate", "x", *JOIN]),
        ("torch", ["chat", *JOIN]),
        ("aiohttp", ["api", "--port", "0", *JOIN]),
        ("shoal.client.cli.status", ["status", *JOIN]),
        ("torch", ["doctor", "--json"]),
        ("torch", ["peer", *JOIN]),
        ("shoal.peer.loading", ["peer", "--dry-run", "--quiet", *JOIN]),
        ("shoal.dht.cli", ["bootstrap"]),
        ("uvloop", ["demo"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_it_ends_a_command_that_still_imports_without_a_word(module: str, argv: list[str]) -> None:
    assert starting(module, argv) == (130, "", "")


def test_where_it_is_ignored_it_stays_so() -> None:
    status, out, err = starting("shoal.client.cli.commands", ["--help"], handler="SIG_IGN")
    assert (status, err) == (0, "")
    assert out.startswith("usage")


def test_a_command_that_runs_and_who_called_it_hear_it_as_ever() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a loop of uvloop's, once closed, leaves its own behind
    heard = []

    def command(_: list[str]) -> int:
        heard.append(signal.getsignal(signal.SIGINT))
        return 0

    assert run(lambda: command, []) == 0
    assert main(["no-such-command"]) == 2
    assert [*heard, signal.getsignal(signal.SIGINT)] == [signal.default_int_handler] * 2


def test_a_command_runs_in_any_thread() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(main(["no-such-command"])))
    thread.start()
    thread.join()
    assert found == [2]
