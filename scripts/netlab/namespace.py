"""Network namespaces and the TUN devices in them. The machine's own interfaces are never touched.

A namespace here has no name in the file system: it lives while a descriptor or a process holds it, so that nothing is
left of it however its makers end. Only the calling thread enters one, and threads that do are ended right after.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from netlab.enter import CLONE_NEWNET, set_namespace
from netlab.spec import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from netlab.spec import Spec

T = TypeVar("T")
DEVICE = b"wan0"
TUN_FILE = Path("/dev/net/tun")
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
OFFLOAD_CSUM, OFFLOAD_TSO4 = 0x01, 0x02
SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFMTU, SIOCSIFTXQLEN = 0x8916, 0x891C, 0x8922, 0x8943
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCADDRT = 0x8913, 0x8914, 0x890B
IFF_UP, RTF_UP = 0x1, 0x1
QUEUE_PACKETS = 10_000


def why_not() -> str | None:
    """Why networks cannot be made here, or None if they can."""
    if os.name != "posix" or not Path("/proc/self/ns/net").exists():
        return "network namespaces are a feature of Linux"
    if os.geteuid() != 0:
        return "network namespaces need root: run this with sudo"
    if not TUN_FILE.exists():
        return f"there is no {TUN_FILE}: load the kernel's tun module (modprobe tun)"
    try:
        namespace = new_namespace()
    except OSError as error:
        return f"this kernel or container makes no network namespaces: {error.strerror}"
    os.close(namespace)
    return None


def addresses_of(spec: Spec) -> dict[str, str]:
    """Addresses of all hosts and routers. Public ones have a /24 each, as the directory limits nodes of one, and are in
    no range for private use or documentation: libp2p drops relay addresses in those. The hosts behind every router are
    192.168.1.2, 192.168.1.3 and so on, as in most homes."""
    found = {name: f"11.0.{number}.1" for number, name in enumerate(spec.lines, 1)}
    for router in spec.lines:
        hidden = [name for name, its in spec.behind.items() if its == router]
        found |= {name: f"192.168.1.{number}" for number, name in enumerate(hidden, 2)}
    return found


def new_namespace() -> int:
    """A descriptor that keeps a fresh network namespace. Errors: `OSError`."""

    def work() -> int:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return _in_thread(work)


def within(namespace: int, work: Callable[[], T]) -> T:
    """What `work` returns in a thread of its own inside `namespace`."""

    def entered() -> T:
        set_namespace(namespace)
        return work()

    return _in_thread(entered)


def open_device(namespace: int, address: str, spec: Spec) -> int:
    """A non-blocking descriptor of a host's TUN device, which is up, addressed and the way to everywhere."""
    return within(namespace, lambda: _open_device(address, spec))


def _open_device(address: str, spec: Spec) -> int:
    tun = os.open(TUN_FILE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", DEVICE, IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    if spec.bulk and not any(line.loss for line in spec.lines.values()):
        fcntl.ioctl(tun, TUNSETOFFLOAD, OFFLOAD_CSUM | OFFLOAD_TSO4)
    _settings(spec)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFADDR, DEVICE.ljust(16, b"\0") + _sockaddr(address))
        fcntl.ioctl(control, SIOCSIFNETMASK, DEVICE.ljust(16, b"\0") + _sockaddr("255.255.255.255"))
        fcntl.ioctl(control, SIOCSIFMTU, struct.pack("16si20x", DEVICE, spec.mtu))
        fcntl.ioctl(control, SIOCSIFTXQLEN, struct.pack("16si20x", DEVICE, QUEUE_PACKETS))
        for device in (b"lo", DEVICE):
            flags = struct.unpack("16xH22x", fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("40s", device)))[0]
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", device, flags | IFF_UP))
        name = ctypes.create_string_buffer(DEVICE)
        route = struct.pack("L", 0) + _sockaddr("0.0.0.0") * 3
        route += struct.pack("HhLPhPLLH6x", RTF_UP, 0, 0, 0, 0, ctypes.addressof(name), 0, 0, 0)
        fcntl.ioctl(control, SIOCADDRT, route)
    return tun


def _settings(spec: Spec) -> None:
    """/proc/sys/net shows the namespace of whoever looks."""
    if spec.tcp:
        try:
            Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text(spec.tcp)
        except OSError as error:
            allowed = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().split()
            raise SpecError(f"tcp={spec.tcp} is not to be had here; there is {', '.join(allowed)}") from error
    if spec.keep:
        Path("/proc/sys/net/ipv4/tcp_slow_start_after_idle").write_text("0")
    for name in ("all", "default"):
        switch = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
        if switch.exists():
            switch.write_text("1")


def _sockaddr(address: str) -> bytes:
    return struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))


def _in_thread(work: Callable[[], T]) -> T:
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001  the caller gets it
            result.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result.result()
