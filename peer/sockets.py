"""Where running peers of this user listen to their volunteer, and how one asks them. No asyncio, nothing heavy.

One unix socket a process, in a folder that nobody else can enter. Whoever is let into the folder may pause a peer: the
folder's rights are the only key there is.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from shoal.peer.config import PeerError

MAX_LINE_BYTES = 64 * 1024
ANSWER_S = 5.0
SUFFIX = ".sock"


def folder() -> Path:
    """The folder of the sockets, made if it is not there: in XDG_RUNTIME_DIR, the system's folder for this user's
    running programs, or else the temporary folder. Errors: `PeerError` if others could reach into it."""
    user = os.getuid()
    given, system = os.environ.get("XDG_RUNTIME_DIR"), Path(f"/run/user/{user}")
    if given:
        made = Path(given) / "shoal"
    elif system.is_dir() and os.access(system, os.W_OK):
        made = system / "shoal"
    else:
        made = Path(tempfile.gettempdir()) / f"shoal-{user}"
    with suppress(FileExistsError):
        made.mkdir(mode=0o700, parents=True)
    found = made.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o077:
        raise PeerError(f"{made} is not a folder for you alone: remove it, or set XDG_RUNTIME_DIR to one that is")
    return made


def bind(peer_id: str) -> tuple[socket.socket, Path]:
    """A listening socket for this process's peer. Errors: `PeerError`, `OSError`."""
    place = folder()
    _clean(place)
    path = place / f"{peer_id[-8:]}-{os.getpid()}{SUFFIX}"
    hidden = path.with_suffix(".new")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        hidden.unlink(missing_ok=True)
        listening.bind(str(hidden))
        listening.listen(8)
        listening.setblocking(False)
        hidden.rename(path)  # it appears when it answers: a bound socket that does not would pass for a stale one
    except OSError as error:
        listening.close()
        hidden.unlink(missing_ok=True)
        raise PeerError(f"cannot listen at {path}: {error.strerror or error}") from error
    return listening, path


def running() -> list[Path]:
    """Sockets of the peers that run now, oldest first. Errors: `PeerError`."""
    place = folder()
    _clean(place)
    return sorted(place.glob(f"*{SUFFIX}"), key=_since)


def pids() -> set[int]:
    """Process ids by the sockets that are there, asking none of them. Errors: `PeerError`."""
    return {int(path.stem.rpartition("-")[2]) for path in folder().glob(f"*{SUFFIX}")}


def ask(path: Path, request: dict[str, Any], timeout_s: float = ANSWER_S) -> dict[str, Any]:
    """What the peer at `path` answers. Errors: `PeerError` if it does not, or says that it cannot."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(timeout_s)
            line.connect(str(path))
            line.sendall(json.dumps(request).encode() + b"\n")
            with line.makefile("rb") as reading:
                answer = json.loads(reading.readline(MAX_LINE_BYTES))
    except (OSError, ValueError) as error:
        raise PeerError(f"the peer at {path} does not answer ({error}): look at its log") from error
    if not isinstance(answer, dict) or "error" in answer:
        raise PeerError(f"the peer at {path} says: {answer.get('error') if isinstance(answer, dict) else answer!r}")
    return answer


def _clean(place: Path) -> None:
    """Remove the sockets of processes that are gone."""
    for path in place.glob(f"*{SUFFIX}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(ANSWER_S)
            try:
                line.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:
                continue


def _since(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
