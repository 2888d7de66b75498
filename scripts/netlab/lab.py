"""A network that tests and benchmarks stand up: `with Lab("rtt=5ms a b") as lab`. Knows no Shoal.

`lab.command("a")` is put before a command's arguments and runs it on host a; `lab.inside("a")` takes this thread there.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from netlab.enter import set_namespace
from netlab.namespace import within

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SCRIPTS = Path(__file__).resolve().parents[1]
ENTER = Path(__file__).with_name("enter.py")
END_S = 10.0


class LabError(Exception):
    """The network cannot be made or does not obey; one sentence."""


def folder() -> Path:
    """Where the networks of this user take orders."""
    path = Path(tempfile.gettempdir()) / f"shoal-wan-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise LabError(f"{path} belongs to somebody else; remove it")
    return path


def order(name: str, **what: Any) -> dict[str, Any]:
    """Tell the network `name` something; its answer. Errors: `LabError`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        try:
            asker.connect(str(folder() / name))
        except OSError as error:
            raise LabError(f"no network named {name!r} is up; `scripts/wan up SPEC` makes one") from error
        asker.sendall(json.dumps(what).encode())
        asker.shutdown(socket.SHUT_WR)
        answer: dict[str, Any] = json.loads(b"".join(iter(lambda: asker.recv(1 << 16), b"")))
    if "error" in answer:
        raise LabError(answer["error"])
    return answer


class Lab:
    """A running network, gone at the end of `with`. By host: `hosts` are own addresses, `public` what others
    see. `pid`: the forwarder."""

    def __init__(self, spec: str, name: str | None = None) -> None:
        self.spec = spec
        self.name = name or uuid.uuid4().hex[:12]
        self.hosts: dict[str, str] = {}
        self.public: dict[str, str] = {}
        self.pid = 0
        self._namespaces: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        path = folder() / self.name
        if path.exists():
            self._refuse_twin(path)
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-m", "netlab.forwarder", self.spec, str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
            start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise LabError("the network could not be made; the line above says why")
        told = json.loads(line)
        self.pid = told["pid"]
        for host, where in told["hosts"].items():
            self.hosts[host], self.public[host] = where["address"], where["public"]
            self._namespaces[host] = where["namespace"]
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the network and what runs in it. Idempotent."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None and process.stdout is not None:
            process.stdin.close()
            try:
                process.wait(END_S)
            finally:
                process.kill()
                process.stdout.close()

    def command(self, host: str) -> list[str]:
        """What to put before a command's arguments to run it on `host`."""
        return enter_command(self._namespace(host))

    @contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """Take the calling thread to a host; its new sockets, threads and processes are there too."""
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(self._namespace(host), os.O_RDONLY | os.O_CLOEXEC)
        try:
            set_namespace(there)
            yield
        finally:
            set_namespace(back)
            os.close(back)
            os.close(there)

    def socket(self, host: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """An IPv4 socket that belongs to a host."""
        there = os.open(self._namespace(host), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return within(there, lambda: socket.socket(socket.AF_INET, kind))
        finally:
            os.close(there)

    def cut(self, left: Sequence[str], right: Sequence[str] = ()) -> None:
        """Let nothing pass between two groups of hosts (`right` empty: all others)."""
        order(self.name, do="cut", left=list(left), right=list(right))

    def heal(self) -> None:
        """Undo every cut."""
        order(self.name, do="heal")

    def set(self, host: str, *options: str) -> None:
        """Change a host's line: `lab.set("a", "rtt=300ms", "loss=2%")`."""
        order(self.name, do="set", host=host, options=options)

    def stats(self) -> dict[str, Any]:
        """Packets by fate, and the forwarder's CPU seconds; `passed`: packets by way ("a>b", routers for hosts)."""
        return order(self.name, do="stats")

    def _namespace(self, host: str) -> str:
        if host not in self._namespaces:
            raise LabError(f"there is no host {host!r}; there are {', '.join(self._namespaces)}")
        return self._namespaces[host]

    def _refuse_twin(self, path: Path) -> None:
        try:
            order(self.name, do="describe")
        except LabError:
            path.unlink(missing_ok=True)  # left by one that was killed together with its watcher
            return
        raise LabError(f"a network named {self.name!r} is already up; end it or give this one another --name")


def enter_command(namespace: str) -> list[str]:
    """What to put before a command's arguments to run it in a namespace."""
    return [sys.executable, "-S", "-I", str(ENTER), namespace]
