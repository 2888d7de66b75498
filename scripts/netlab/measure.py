"""What a network really does between two of its hosts: round trips, rate, loss, and what the forwarder costs."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netlab.lab import Lab

CHUNK = 1 << 18
DATAGRAM = b"x" * 200
QUIET_S = 0.5


def round_trips(lab: Lab, a: str, b: str, count: int = 50) -> list[float]:
    """Sorted seconds of `count` TCP exchanges of one small message each way."""
    near, far = _pair(lab, a, b)
    answering = threading.Thread(target=_echo, args=(far,))
    answering.start()
    times = []
    with near:
        for _ in range(count):
            began = time.perf_counter()
            near.sendall(b"ping")
            near.recv(16)
            times.append(time.perf_counter() - began)
    answering.join()
    return sorted(times)


def rate(lab: Lab, a: str, b: str, seconds: float = 2.0) -> float:
    """Bits a second that one TCP stream brings from `a` to `b`, after its first half of the time."""
    near, far = _pair(lab, a, b)
    end = time.monotonic() + seconds
    sending = threading.Thread(target=_pour, args=(near, end))
    sending.start()
    buffer, counted = bytearray(CHUNK), 0
    begin = time.monotonic() + seconds / 2
    with far:
        while (now := time.monotonic()) < end and (got := far.recv_into(buffer)):
            counted += got if now >= begin else 0
    sending.join()
    return counted * 8 / (seconds / 2)


def loss(lab: Lab, a: str, b: str, count: int = 2000, gap_s: float = 0.0003) -> float:
    """Share of `count` datagrams from `a` that do not reach `b`."""
    with lab.socket(a, socket.SOCK_DGRAM) as near, lab.socket(b, socket.SOCK_DGRAM) as far:
        far.bind((lab.hosts[b], 0))
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        for _ in range(count):
            near.sendto(DATAGRAM, far.getsockname())
            time.sleep(gap_s)
        far.settimeout(QUIET_S)
        arrived = 0
        try:
            while far.recv(4096):
                arrived += 1
        except TimeoutError:
            return 1 - arrived / count


def reachable(lab: Lab, a: str, b: str, timeout_s: float = 1.0) -> bool:
    """Whether `a` can begin a TCP connection to `b`."""
    with lab.socket(b) as far, lab.socket(a) as near:
        far.bind((lab.hosts[b], 0))
        far.listen(1)
        near.settimeout(timeout_s)
        try:
            near.connect(far.getsockname())
        except OSError:
            return False
        return True


def _pair(lab: Lab, a: str, b: str) -> tuple[socket.socket, socket.socket]:
    """Connected sockets on the two hosts. `a` dials, and `b` does if that is not let in."""
    with lab.socket(b) as listening:
        listening.bind((lab.hosts[b], 0))
        listening.listen(1)
        near = lab.socket(a)
        near.settimeout(5.0)
        near.connect(listening.getsockname())
        far, _ = listening.accept()
    for end in (near, far):
        end.settimeout(30.0)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def _echo(end: socket.socket) -> None:
    with end:
        while said := end.recv(16):
            end.sendall(said)


def _pour(end: socket.socket, until: float) -> None:
    chunk = bytes(CHUNK)
    with end:
        try:
            while time.monotonic() < until:
                end.sendall(chunk)
        except OSError:
            return
