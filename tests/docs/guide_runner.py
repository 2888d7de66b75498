"""Owns how the blocks of one page run: where, with which words put in for placeholders, and how the page is ended.

Commands come from guide_command.py and guide_forks.py. What a page starts ends with it.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from guide_command import ask
from guide_files import CHECKS
from guide_output import json_differs, json_in, shows
from guide_page import ROOT, Block

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).resolve().parent
BLOCK_S = 120.0
END_S = 45.0
MARK = "SHOAL_TEST_MARK"
# Ports that pages name: each page gets free ones in their place.
PORTS = ("4001", "4002", "8000")
API_PORT = "8000"
SHELL = """\
set -euo pipefail -o allexport
[ ! -f "$GUIDE_FOLDER/state" ] || source "$GUIDE_FOLDER/state"
{code}
{{ export -p; printf 'cd %q\\n' "$PWD"; }} >"$GUIDE_FOLDER/state"
"""


class BlockError(Exception):
    """What a block did that its page does not say."""


@dataclass(frozen=True)
class Swarm:
    """What pages without a swarm of their own join: its invite, the id of its bootstrap node, the forks' socket, and a
    home folder and an environment variable that all its processes share."""

    invite: str
    peer_id: str
    socket: str
    home: Path
    mark: str


@dataclass
class Page:
    """One page at work in a folder of its own; `with` it, so that everything it started ends."""

    folder: Path
    swarm: Swarm
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        (self.folder / "work").mkdir(parents=True)
        (self.folder / "bin").mkdir()
        for entry in ROOT.iterdir():
            if entry.name not in {".git", "build", "README.md"}:
                (self.folder / "work" / entry.name).symlink_to(entry)
        shim = self.folder / "bin" / "shoal"
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {HERE / "guide_command.py"} "$@"\n')
        shim.chmod(0o755)
        self.invite = self.swarm.invite
        self.ports = free_ports()
        self.output: tuple[int, str] | None = None
        self.python: Interpreter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exc_info: object) -> None:
        wrong = end_all(self.folder) + (self.python.end() if self.python is not None else [])
        if wrong and kind is None:
            raise BlockError("\n".join(wrong))

    def run(self, blocks: Iterable[Block]) -> None:
        """One after the other. Errors: `BlockError` for the first that does not do what its page says."""
        for block in blocks:
            if block.not_run:
                self.counts[f"not run: {block.not_run}"] += 1
                self.output = None
            elif block.language in ("bash", "sh"):
                self._shell(block)
            elif block.language == "python":
                self._python(block)
            elif block.language == "text" or (block.language == "json" and self._follows(block)):
                self._compare(block)
            elif block.language in CHECKS:
                self._check(block)
            else:
                raise BlockError(f"{block.place}: no test knows what to do with ```{block.language}")

    def _shell(self, block: Block) -> None:
        if "shoal bootstrap" in block.code and re.search(r"\bINVITE\b(?!=)", block.code):
            raise BlockError(f"{block.place}: use INVITE in a block behind the one that starts its swarm")
        script = self.folder / "block.sh"
        script.write_text(SHELL.format(code=self.for_real(block.code)))
        log = self.folder / "block.log"
        with log.open("wb") as out:
            shell = subprocess.Popen(
                ["bash", str(script)], cwd=self.folder / "work", env=self.environment(), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            status = shell.wait(BLOCK_S)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            status = f"none within {BLOCK_S:.0f} s ({shell.wait()})"
        said = log.read_text(errors="replace")
        if status != block.status:
            raise BlockError(f"{block.place}: exit status {status}, not {block.status}\n{said}")
        self._done(block, said)

    def _python(self, block: Block) -> None:
        if self.python is None:
            self.python = Interpreter(self.environment(), self.folder)
        code = self.for_real(block.code, names=False)
        said, alive = self.python.run({"code": code, "place": block.place, "names": {"INVITE": self.invite}})
        if not alive:
            raise BlockError(f"{block.place}:\n{said}")
        self._done(block, said)

    def _done(self, block: Block, said: str) -> None:
        """A page that starts a swarm of its own goes on with that one."""
        self.counts["run"] += 1
        self.output = block.section, said
        if (own := re.findall(r"shoal1[\w-]+", said)) and "shoal bootstrap" in block.code:
            self.invite = own[-1]

    def _follows(self, block: Block) -> bool:
        return self.output is not None and self.output[0] == block.section

    def _compare(self, block: Block) -> None:
        if not self._follows(block):
            raise BlockError(f"{block.place}: no block before this one, under the same heading, has printed anything")
        said = self.output[1]
        if block.language == "json":
            differs = json_differs(json_in(said), json.loads(block.code))
        else:
            differs = None if shows(said, block.code) else "it is not in the output"
        if differs:
            raise BlockError(f"{block.place}: {differs}\n--- the page shows\n{block.code}--- the output is\n{said}")
        self.counts["compared"] += 1

    def _check(self, block: Block) -> None:
        try:
            CHECKS[block.language](block.code)
        except Exception as error:
            raise BlockError(f"{block.place}: {error}") from None
        self.counts["parsed"] += 1

    def for_real(self, code: str, *, names: bool = True) -> str:
        """`code` with what this page's swarm has in place of the page's placeholders."""
        real = {r"shoal1\.\.\.": self.invite, r"12D3Koo\.\.\.": self.swarm.peer_id, r"\b0\.0\.0\.0\b": "127.0.0.1"}
        real |= {rf"(?<![\w.]){port}\b": free for port, free in self.ports.items()}
        if names:
            real[r"(?<![\w${])INVITE\b(?!=)"] = self.invite
        for pattern, word in real.items():
            code = re.sub(pattern, word, code)
        return code

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        api = self.ports[API_PORT]
        return environment(self.swarm.home, self.swarm.mark, self.swarm.socket, self.folder) | {
            "PATH": path, "INVITE": self.invite, "GUIDE_API_PORT": api, "SHOAL_PYTHON": sys.executable,
        }  # fmt: skip


class Interpreter:
    """The Python of one page: its blocks share their variables."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self.errors = folder / "python.err"
        code, self.code = os.pipe()
        self.said, said = os.pipe()
        with self.errors.open("wb") as errors:
            self.asked = ask(None, [code, said, errors.fileno()], env=env, cwd=str(folder / "work"))
            self.pid, self.lines = self.asked.__enter__()
        os.close(code)
        os.close(said)

    def run(self, request: dict) -> tuple[str, bool]:
        """What it printed, and whether it is still there."""
        os.write(self.code, json.dumps(request).encode() + b"\n")
        deadline = time.monotonic() + BLOCK_S
        said = b""
        while not said.endswith(b"\0\n"):
            more = _read(self.said, deadline)
            if not more:
                return said.decode() + self.errors.read_text(), False
            said += more
        return said[:-2].decode(), True

    def end(self) -> list[str]:
        """As at the end of a script; what went wrong then."""
        os.close(self.code)
        with closing(self.asked.socket), closing(self.lines):
            self.asked.socket.settimeout(END_S)
            status = next(self.lines, "nothing").strip()
        os.close(self.said)
        return [] if status == "0" else [f"the page's Python ended with {status}\n{self.errors.read_text()}"]


def _read(descriptor: int, deadline: float) -> bytes:
    ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
    return os.read(descriptor, 1 << 16) if ready else b""


def environment(home: Path, mark: str, forks: str, folder: Path) -> dict[str, str]:
    """For commands: nothing of this user's own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SHOAL_", "HF_", "XDG_"))}
    return kept | {
        "HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1",
        MARK: mark, "GUIDE_SOCKET": forks, "GUIDE_FOLDER": str(folder),
    }  # fmt: skip


def free_ports() -> dict[str, str]:
    """A free port of this machine for each that pages name."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in PORTS]
        return {name: str(each.getsockname()[1]) for name, each in zip(PORTS, sockets, strict=True)}


def end_all(folder: Path) -> list[str]:
    """Ctrl-C for all that was left running; what of it did not end well."""
    left = {note: note.with_suffix(".status") for note in folder.glob("*.pid")}
    for note, status in left.items():
        if not status.exists():
            _signal(note, signal.SIGINT)
    deadline = time.monotonic() + END_S
    while not all(status.exists() for status in left.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    wrong = []
    for note, status in left.items():
        if not status.exists():
            _signal(note, signal.SIGKILL)
        how = status.read_text() if status.exists() else f"nothing within {END_S:.0f} s"
        if how not in ("0", "130"):
            wrong.append(
                f"{note.stem} did not end well, but with {how}:\n{note.with_suffix('.log').read_text()[-2000:]}"
            )
    return wrong


def _signal(note: Path, number: signal.Signals) -> None:
    """For the process that `note` names; one that a page has killed may be gone before its status is written."""
    with suppress(ProcessLookupError):
        os.kill(int(note.read_text()), number)
