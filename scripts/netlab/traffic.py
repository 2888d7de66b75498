"""Decides the fate of every packet: lost, blocked, cut off, or delivered when. Pure: told `now`, touches no device.

A packet is what a TUN device with IFF_VNET_HDR gives: a header of 10 bytes that says whether the kernel left it in one
big piece (GSO), then an IPv4 packet. Times are seconds on the caller's clock.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING

from netlab.router import HEADER, TCP, UDP, Router

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from netlab.spec import Line

MIN_QUEUE_BYTES = 1 << 17  # two of the biggest packets, however slow the line


class Traffic:
    """Packets under way between hosts, which are numbers: `lines[n]` is host n's line, `addresses[n]` its 4 bytes.

    Number n may also be a router. `behind`: router and own address of each host that has one; their numbers follow.
    """

    def __init__(
        self, addresses: Sequence[bytes], lines: Iterable[Line], seed: int, behind: Sequence[tuple[int, bytes]] = ()
    ) -> None:
        self._number = {address: host for host, address in enumerate(addresses)}
        self.lines = list(lines)
        self.counts: Counter[str] = Counter()
        self.passed: Counter[tuple[int, int]] = Counter()  # packets that came through the second one's line
        self._rng = random.Random(seed)
        hidden = list(enumerate(behind, len(self.lines)))
        self._router_of = {host: router for host, (router, _) in hidden}
        self._routers = {
            number: Router(addresses[number], {a: host for host, (router, a) in hidden if router == number}, self._rng)
            for number, line in enumerate(self.lines)
            if line.nat != "no"
        }
        self._cut: set[tuple[int, int]] = set()
        self._up_free = [0.0] * len(self.lines)
        self._down_free = [0.0] * len(self.lines)
        self._last_due: dict[tuple[int, int], float] = {}
        self._begun: dict[tuple[int, int, int, bytes], float] = {}  # flows that closed hosts began
        self._order = count()
        # (due, order, source, destination, wire bytes, packet); no wire bytes: it is through the destination's line
        self._due: list[tuple[float, int, int, int, int, bytes]] = []

    def cut(self, sides: tuple[Iterable[int], Iterable[int]]) -> None:
        """Nothing passes between the two sides any more."""
        left, right = map(tuple, sides)
        self._cut |= {pair for a in left for b in right if a != b for pair in ((a, b), (b, a))}

    def heal(self) -> None:
        """Everything passes again."""
        self._cut.clear()

    def take(self, source: int, packet: bytes, now: float) -> None:
        """A host sent a packet."""
        if packet[HEADER] >> 4 != 4:
            return
        if source in self._router_of:
            source = self._router_of[source]
            router = self._routers[source]
            if packet[HEADER + 16 : HEADER + 20] in router.hosts:
                heapq.heappush(self._due, (now, next(self._order), source, source, 0, packet))
                return
            translated = router.outward(packet, self.lines[source], now)
            if translated is None:
                self.counts["blocked"] += 1
                return
            packet = translated
        destination = self._number.get(packet[HEADER + 16 : HEADER + 20])
        if destination is None or destination == source:
            return
        if (source, destination) in self._cut:
            self.counts["cut"] += 1
        elif not self._passes(source, destination, packet, now):
            self.counts["blocked"] += 1
        else:
            self._send(source, destination, packet, now)

    def next_due(self) -> float | None:
        """When `release` has something to do."""
        return self._due[0][0] if self._due else None

    def release(self, now: float) -> list[tuple[int, bytes]]:
        """Packets that have arrived by now, with the hosts that get them."""
        due, arrived = self._due, []
        while due and due[0][0] <= now:
            at, order, source, destination, size, packet = heapq.heappop(due)
            done = self._through_downlink(at, source, destination, size) if size else at
            if done is None:
                self.counts["overflow"] += 1
            elif done > now:
                heapq.heappush(due, (done, order, source, destination, 0, packet))
            elif (found := self._inside(destination, packet, now)) is not None:
                arrived.append(found)
                self.passed[source, destination] += 1
            else:
                self.counts["blocked"] += 1
        self.counts["delivered"] += len(arrived)
        return arrived

    def _inside(self, destination: int, packet: bytes, now: float) -> tuple[int, bytes] | None:
        """The host that gets a packet, and the packet as it gets it."""
        router = self._routers.get(destination)
        return (destination, packet) if router is None else router.inward(packet, self.lines[destination], now)

    def _send(self, source: int, destination: int, packet: bytes, now: float) -> None:
        here, there = self.lines[source], self.lines[destination]
        size = wire_bytes(packet)
        sent = now
        if here.rate:
            begin = max(now, self._up_free[source])
            if begin - now > max(here.queue, MIN_QUEUE_BYTES * 8 / here.rate):
                self.counts["overflow"] += 1
                return
            sent = self._up_free[source] = begin + size * 8 / here.rate
        if (here.loss or there.loss) and self._rng.random() < (here.loss + there.loss) / 2:
            self.counts["lost"] += 1
            return
        at = sent + (here.rtt + there.rtt) / 4
        if here.jitter or there.jitter:
            at += self._rng.random() * (here.jitter + there.jitter) / 2
        path = (source, destination)
        at = self._last_due[path] = max(at, self._last_due.get(path, 0.0))
        heapq.heappush(self._due, (at, next(self._order), source, destination, size, packet))

    def _through_downlink(self, at: float, source: int, destination: int, size: int) -> float | None:
        """When the last bit has come in, if it reached the line's far end `at`; None if too much waits before it."""
        down, up = self.lines[destination], self.lines[source]
        if not down.rate:
            return at
        took = size * 8 / down.rate
        if self._down_free[destination] - at > max(down.queue, MIN_QUEUE_BYTES * 8 / down.rate):
            return None
        behind = max(0.0, took - size * 8 / up.rate) if up.rate else took  # bits pass through as they come
        done = self._down_free[destination] = max(at + behind, self._down_free[destination] + took)
        return done

    def _passes(self, source: int, destination: int, packet: bytes, now: float) -> bool:
        """Whether the firewalls of both let it through, which remember what their hosts begin."""
        inside, outside = not self.lines[source].inbound, not self.lines[destination].inbound
        if not inside and not outside:
            return True
        protocol = packet[HEADER + 9]
        at = HEADER + (packet[HEADER] & 15) * 4
        near, far = packet[at : at + 2], packet[at + 2 : at + 4]
        if protocol not in (TCP, UDP):
            near = far = b""
        if inside:
            self._begun[source, destination, protocol, near + far] = now
        if not outside:
            return True
        flow = (destination, source, protocol, far + near)
        expire = self.lines[destination].expire
        if now - self._begun.get(flow, -expire) >= expire:
            return False
        self._begun[flow] = now
        return True


def wire_bytes(packet: bytes) -> int:
    """What a packet takes on the line: a big piece is many packets, each with headers of its own."""
    size = len(packet) - HEADER
    if packet[1]:
        headers, piece = int.from_bytes(packet[2:4], "little"), int.from_bytes(packet[4:6], "little")
        size += ((size - headers - 1) // piece) * headers
    return size
