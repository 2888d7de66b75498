"""The process that is the network: makes the hosts, moves their packets, takes orders; ends with whoever started it.

One loop over all devices. It runs at real-time priority where it may, since a packet that is due must not wait for the
computations of the hosts; it uses little of the machine. A second process watches it and, however it ended, ends what
still runs inside its hosts.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from netlab.namespace import addresses_of, new_namespace, open_device
from netlab.spec import SpecError, parse, with_option
from netlab.traffic import Traffic

READ_BYTES = 1 << 17
BURST = 64  # packets of one device before the others get their turn
END_S = 3.0
LEASH = 0


class Forwarder:
    """Hosts of `spec`, joined. `orders`: the listening unix socket."""

    def __init__(self, text: str, orders: socket.socket) -> None:
        self.spec = parse(text)
        self.lines = list(self.spec.lines)
        self.names = self.lines + list(self.spec.behind)  # in the order of `Traffic`'s numbers
        self.addresses = addresses_of(self.spec)
        self.namespaces = {name: new_namespace() for name in self.spec.hosts}
        self.devices = {
            self.names.index(name): open_device(space, self.addresses[name], self.spec)
            for name, space in self.namespaces.items()
        }
        packed = {name: socket.inet_aton(address) for name, address in self.addresses.items()}
        behind = [(self.lines.index(router), packed[name]) for name, router in self.spec.behind.items()]
        public = [packed[name] for name in self.lines]
        self.traffic = Traffic(public, self.spec.lines.values(), self.spec.seed, behind)
        self._orders = orders

    def describe(self) -> dict[str, Any]:
        """Where the hosts are, and which router is between them and the others."""
        path = f"/proc/{os.getpid()}/fd"
        hosts = {
            name: {
                "address": self.addresses[name],
                "public": self.addresses[self.spec.behind.get(name, name)],
                "namespace": f"{path}/{space}",
            }
            for name, space in self.namespaces.items()
        }
        return {"pid": os.getpid(), "hosts": hosts}

    def run(self) -> None:
        """Forward until the leash (stdin) ends."""
        traffic, clock = self.traffic, time.monotonic
        host_of = {device: host for host, device in self.devices.items()}
        watched = [*host_of, self._orders.fileno(), LEASH]
        while True:
            due = traffic.next_due()
            wait_s = None if due is None else max(0.0, due - clock())
            for device in select.select(watched, (), (), wait_s)[0]:
                if device == LEASH:
                    if not os.read(LEASH, 4096):
                        return
                elif device == self._orders.fileno():
                    self._take_order()
                else:
                    self._read(device, host_of[device])
            for host, packet in traffic.release(clock()):
                with suppress(OSError):  # the host's queue is full, or the packet is not one
                    os.write(self.devices[host], packet)

    def _read(self, device: int, host: int) -> None:
        now = time.monotonic()
        with suppress(BlockingIOError):
            for _ in range(BURST):
                self.traffic.take(host, os.read(device, READ_BYTES), now)

    def _take_order(self) -> None:
        with self._orders.accept()[0] as asker:
            asker.settimeout(1.0)
            try:
                answer = self._obey(json.loads(asker.recv(1 << 16)))
            except (OSError, ValueError, KeyError, TypeError, SpecError) as error:
                answer = {"error": str(error)}
            with suppress(OSError):
                asker.sendall(json.dumps(answer).encode())

    def _obey(self, order: dict[str, Any]) -> dict[str, Any]:
        if order["do"] == "cut":
            left, right = order["left"], order["right"] or [name for name in self.lines if name not in order["left"]]
            self.traffic.cut(([self._line(name) for name in left], [self._line(name) for name in right]))
        elif order["do"] == "heal":
            self.traffic.heal()
        elif order["do"] == "set":
            number = self._line(order["host"])
            for option in order["options"]:
                line = with_option(self.traffic.lines[number], option)
                if (line.nat == "no") != (self.traffic.lines[number].nat == "no"):
                    raise SpecError("what is a router and what is none is said when the network is made")
                self.traffic.lines[number] = line
        elif order["do"] == "stats":
            passed = {f"{self.lines[a]}>{self.lines[b]}": count for (a, b), count in self.traffic.passed.items()}
            return {"cpu_s": time.process_time(), **self.traffic.counts, "passed": passed}
        elif order["do"] != "describe":
            raise SpecError(f"there is no order {order['do']!r}")
        return self.describe()

    def _line(self, name: str) -> int:
        if name in self.spec.behind:
            raise SpecError(f"{name!r} has no line of its own; name its router {self.spec.behind[name]!r}")
        if name not in self.lines:
            raise SpecError(f"there is no host {name!r}; there are {', '.join(self.lines)}")
        return self.lines.index(name)


def inside(namespaces: set[int]) -> list[int]:
    """Ids of the processes in namespaces, which are inode numbers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if (entry / "ns" / "net").stat().st_ino in namespaces:
                    found.append(int(entry.name))
    return found


def watch(leash: int, namespaces: set[int], spared: set[int], orders: Path) -> None:
    """Wait for the forwarder's end; then end what runs inside its hosts and remove its socket."""
    while os.read(leash, 1):
        pass
    orders.unlink(missing_ok=True)
    end = time.monotonic() + END_S
    number = signal.SIGTERM
    told: set[int] = set()
    while left := set(inside(namespaces)) - spared:
        if time.monotonic() > end:
            number, told = signal.SIGKILL, set()
        for process in left - told:
            with suppress(ProcessLookupError):
                os.kill(process, number)
        told |= left
        time.sleep(0.05)


def _guard(forwarder: Forwarder, orders: Path) -> None:
    """Fork the watcher. It spares the process that started us: a test may stand inside a host itself."""
    spared = {os.getpid(), os.getppid()}
    leash, ours = os.pipe2(os.O_CLOEXEC)
    inodes = {os.fstat(space).st_ino for space in forwarder.namespaces.values()}
    if os.fork():
        os.close(leash)
        return
    os.setsid()
    for descriptor in (0, 1, 2, ours, *forwarder.namespaces.values(), *forwarder.devices.values()):
        os.close(descriptor)
    watch(leash, inodes, spared, orders)
    os._exit(0)


def main() -> None:
    """`forwarder SPEC SOCKET`: describe the network in one line of JSON, then forward."""
    text, path = sys.argv[1], Path(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever started us hears them and lets the leash go
    orders = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    orders.bind(str(path))
    orders.listen(8)
    try:
        forwarder = Forwarder(text, orders)
    except (SpecError, OSError) as error:
        path.unlink()
        sys.exit(f"wan: {error}")
    _guard(forwarder, path)
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    sys.stdout.write(json.dumps(forwarder.describe()) + "\n")
    sys.stdout.flush()
    gc.freeze()
    gc.disable()
    forwarder.run()


if __name__ == "__main__":
    main()
