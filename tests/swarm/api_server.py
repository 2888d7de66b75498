"""A `shoal api` process for tests, and what the tests ask it without a client library."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from processes import Processes, Running

FREED_S = 1.0


@dataclass(frozen=True)
class Server:
    """`url` without a path."""

    running: Running
    url: str

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def ask(
        self, path: str, body: object = None, headers: Mapping[str, str] | None = None, method: str | None = None
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, JSON (text where it is none) and headers; `body`: bytes as they are, else made JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        given = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, data, given, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, _read(response.read()), response.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _read(error.read()), error.headers

    def raw(self, data: bytes) -> socket.socket:
        """A connection on which `data` was sent."""
        connection = socket.create_connection(self.address, timeout=30)
        connection.sendall(data)
        return connection

    def post(self, path: str, body: object) -> socket.socket:
        """A connection on which a whole request was sent, its answer to be read."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return self.raw(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        _, text, _ = self.ask("/metrics")
        found = [
            line.rpartition(" ")[2] for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] == name
        ]
        assert found, f"{name} is not in /metrics"
        return sum(map(float, found))


def start_api(processes: Processes, invite: str, *options: str) -> Server:
    """A server on a free port."""
    own = ["--model", "demo", "--join", invite, "--port", "0", "--dtype", "float32", "--json"]
    running = processes.start("api", *own, *options)
    return Server(running, running.event("event", "serving")["url"])


def until(condition: Any, patience_s: float = 15.0) -> float:
    """Seconds until `condition()` held."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < patience_s, "waited in vain"
        time.sleep(0.02)
    return time.monotonic() - began


def closed_by_server(connection: socket.socket, patience_s: float) -> float:
    """Seconds until the server closed the connection."""
    began = time.monotonic()
    connection.settimeout(patience_s)
    with closing(connection):
        while connection.recv(65536):
            pass
    return time.monotonic() - began


def _read(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode()
