"""The `shoal` that a page's blocks find on their path: has guide_forks.py run the command, and leaves what serves until
Ctrl-C in the background as soon as it has said that it is ready.

python guide_command.py ARGUMENTS, with these in the environment: GUIDE_SOCKET where guide_forks.py listens,
GUIDE_FOLDER where to note what was left running, GUIDE_API_PORT the port of a `shoal api` that is told none.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

READY_S = 90.0
# What runs until it is told to end, and what each says once it serves.
SERVING = {"bootstrap": r"shoal1[\w-]+", "peer": r'online as|"event": "online"', "api": r"https?://\S+"}
WATCHING_S = 0.5


def main(argv: list[str]) -> int:
    if argv[:1] == ["api"] and "--port" not in argv:
        argv = [*argv, "--port", os.environ["GUIDE_API_PORT"]]
    if "--watch" in argv:
        return watch(argv)
    if argv and argv[0] in SERVING and not {"--help", "-h", "--dry-run"} & set(argv):
        return leave_running(argv)
    with ask(argv, [0, 1, 2]) as (pid, lines):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        return int(next(lines))


class ask:  # noqa: N801
    """A command begun: its process id and the lines still to come."""

    def __init__(self, argv: list[str] | None, descriptors: list[int], status_file: str = "", **place: object) -> None:
        request = {"argv": argv, "cwd": str(Path.cwd()), "env": dict(os.environ), "status_file": status_file, **place}
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(request["env"]["GUIDE_SOCKET"])
        socket.send_fds(self.socket, [json.dumps(request).encode()], descriptors)

        self.lines = self.socket.makefile()

    def __enter__(self) -> tuple[int, object]:
        return int(next(self.lines)), self.lines

    def __exit__(self, *exc_info: object) -> None:
        self.lines.close()
        self.socket.close()


def leave_running(argv: list[str]) -> int:
    """Wait until it is ready, show what it said, and go."""
    note = begin(argv)
    end = time.monotonic() + READY_S
    while not re.search(SERVING[argv[0]], said := note["log"].read_text(errors="replace")):
        if note["status"].exists() or time.monotonic() > end:
            sys.stdout.write(said)
            sys.stdout.write(f"`shoal {argv[0]}` did not get ready\n")
            if not note["status"].exists():
                return 1
            note["log"].with_suffix(".pid").unlink()  # its end has been told: nothing is left to look after
            return int(note["status"].read_text())
        time.sleep(0.05)
    sys.stdout.write(said)
    return 0


def watch(argv: list[str]) -> int:
    """Ctrl-C after it has shown something."""
    note = begin(argv)
    end = time.monotonic() + READY_S
    while (
        not note["log"].read_text(errors="replace").strip() and time.monotonic() < end and not note["status"].exists()
    ):
        time.sleep(0.05)
    time.sleep(WATCHING_S)
    if not note["status"].exists():
        with suppress(ProcessLookupError):  # it may have ended, and its status not be written yet
            os.kill(note["pid"], signal.SIGINT)
    while not note["status"].exists() and time.monotonic() < end:
        time.sleep(0.05)
    sys.stdout.write(note["log"].read_text(errors="replace"))
    return {"0": 0, "130": 0}.get(note["status"].read_text(), 1)


def begin(argv: list[str]) -> dict:
    """Start it with its output in a file, and note it for who ends the page."""
    base = Path(os.environ["GUIDE_FOLDER"], f"{argv[0]}-{uuid.uuid4().hex[:8]}")
    log, status = base.with_suffix(".log"), base.with_suffix(".status")
    with log.open("wb") as out, Path(os.devnull).open("rb") as nothing:
        asked = ask(argv, [nothing.fileno(), out.fileno(), out.fileno()], str(status))
    with asked as (pid, _):
        base.with_suffix(".pid").write_text(str(pid))
    return {"pid": pid, "log": log, "status": status}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
