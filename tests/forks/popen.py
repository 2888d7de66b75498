"""Starts `python -m shoal...` as forks of a process that has imported everything (`server.py`), for tests that are not
about the start: a peer's takes 0.5 s of a core instead of 4. What starts is a child of this process like any other.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import functools
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import termios
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PR_SET_CHILD_SUBREAPER = 36
MODULES = ("shoal.client.cli.main", "shoal.client.cli.child")
# Variables that an interpreter, or a library that is imported, reads once: for each set of values a server of its own.
READ_ONCE = (
    "CUDA_", "HF_", "HOME", "HUGGINGFACE_", "LANG", "LC_", "LD_", "OMP_", "PYTHON", "TORCH_", "TRANSFORMERS_",
    "TRITON_", "XDG_CACHE_HOME",
)  # fmt: skip
SERVER = Path(__file__).with_name("server.py")
ROOM, ROOM_BYTES = "FORKS_ROOM", 8192  # in the server's environment and its arguments, for those of its forks
ENTER = [sys.executable, "-S", "-I", str(Path(__file__).parents[2] / "scripts" / "netlab" / "enter.py")]
ENDS = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")

_execute = subprocess.Popen._execute_child
_signature = inspect.signature(_execute)


def own_terminal() -> None:
    """For a new session: make what is its stdin its terminal. Tests in the background, or under `nohup`, ignore what
    that signals."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def forked() -> Iterator[None]:
    """`subprocess` and asyncio start our commands as forks, and everything else as ever."""
    subprocess.Popen._execute_child = _fork_or_execute
    try:
        yield
    finally:
        subprocess.Popen._execute_child = _execute


def _fork_or_execute(popen: subprocess.Popen, *args: Any, **kwargs: Any) -> None:
    """What a `Popen` does once its pipes are there."""
    given = _signature.bind(popen, *args, **kwargs).arguments
    env = dict(os.environ if given["env"] is None else given["env"])
    namespace, argv = _ours(given)
    if argv is None or env.get("OMP_NUM_THREADS") != "1":  # a server with more threads could not fork
        _execute(popen, *args, **kwargs)
        return
    ends = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
    popen.pid = _server(frozenset(_read_once(env).items())).fork(
        {"argv": argv, "env": env, "cwd": str(given["cwd"] or Path.cwd()), "new_session": given["start_new_session"],
         "terminal": given["preexec_fn"] is own_terminal, "namespace": namespace},
        [number if end == -1 else end for number, end in enumerate(ends)],
    )  # fmt: skip
    popen._child_created = True
    popen._close_pipe_fds(*(given[name] for name in ENDS))


def _ours(given: Mapping[str, Any]) -> tuple[str, list[str] | None]:
    """The network namespace and the arguments of a start that a fork can stand for."""
    argv, namespace = list(given["args"]), ""
    if argv[:4] == ENTER:
        namespace, argv = argv[4], argv[5:]
    ours = argv[:2] == [sys.executable, "-m"] and argv[2] in MODULES and given["preexec_fn"] in (None, own_terminal)
    return namespace, argv if ours and not given["pass_fds"] else None


def _read_once(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(READ_ONCE)}


class _Server:
    """The process that forks, started when it is first needed; it leaves when this one does."""

    def __init__(self, environment: frozenset[tuple[str, str]]) -> None:
        self._socket, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        room = "." * ROOM_BYTES
        env = {name: value for name, value in os.environ.items() if not name.startswith(READ_ONCE)}
        with theirs:
            argv = [sys.executable, str(SERVER), str(theirs.fileno()), room]
            self._process = subprocess.Popen(
                argv, pass_fds=[theirs.fileno()], env=env | dict(environment) | {ROOM: room}
            )
        atexit.register(self.end)
        assert self._socket.recv(1), "the server of forks has not started"

    def fork(self, request: dict, descriptors: list[int]) -> int:
        """The id of a new process that is a child of ours: it has lost its own parent, and we are the next of kin."""
        with self._lock:
            _adopt(True)
            try:
                socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
                return int(self._socket.recv(64))
            finally:
                _adopt(False)

    def end(self) -> None:
        """It leaves when nobody can ask it any more; its forks stay, as any other process would."""
        self._socket.close()
        self._process.wait()


_server = functools.cache(_Server)


def _adopt(whether: bool) -> None:
    """Whether orphans of this process's children become its own children."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(whether), 0, 0, 0):
        raise OSError("prctl failed")
