"""The emulated network without its devices: how it is written down, and what becomes of packets."""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from netlab.spec import Line, SpecError, parse
from netlab.traffic import HEADER, TCP, Traffic, wire_bytes

ADDRESSES = [socket.inet_aton(f"11.0.{n}.1") for n in range(3)]
PLAIN = Line(rate=0.0, rtt=0.1)


def packet(source, destination, size=1000, ports=(1, 2)):
    """A TCP packet of `size` bytes, as the device gives it."""
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, size, 0, 0, 64, TCP, 0, ADDRESSES[source], ADDRESSES[destination])
    return bytes(HEADER) + ip + struct.pack("!HH", *ports) + bytes(size - 24)


def network(*lines, seed=0):
    return Traffic(ADDRESSES, lines, seed)


def arrivals(traffic):
    """When each packet under way arrives."""
    times = []
    while (due := traffic.next_due()) is not None:
        times += [due for _ in traffic.release(due)]
    return times


def test_a_network_is_read_as_written():
    spec = parse("rate=100Mbit rtt=100ms mtu=9000 bulk=no seed=3  a  b:loss=5%,inbound=no # the end\n c:rate=2.5kbit/s")
    assert (spec.mtu, spec.bulk, spec.seed, spec.tcp) == (9000, False, 3, "")
    assert spec.lines["a"] == Line(rate=1e8, rtt=0.1)
    assert spec.lines["b"] == Line(rate=1e8, rtt=0.1, loss=0.05, inbound=False)
    assert spec.lines["c"].rate == 2500.0
    spec = parse("rtt=20ms a home:nat=yes,expire=60s pc@home office:nat=symmetric desk@office tv@home")
    assert spec.hosts == ["a", "pc", "desk", "tv"]
    assert spec.behind == {"pc": "home", "desk": "office", "tv": "home"}
    assert spec.lines["home"] == Line(rtt=0.02, nat="yes", expire=60.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1 to 200 hosts"), ("rtt=5ms", "1 to 200 hosts"), ("a a", "stands there twice"),
        ("a rtt=5ms", "after a host"), ("rtt=5 a", "rtt=5: '5' is not a time"), ("a:speed=3", "no option of a line"),
        ("loss=300% a", "more than everything"), ("mtu=100 a", "576"), ("a/b", "no name"),
        ("a:inbound=maybe", "yes or no"), ("r:nat=maybe", "no, yes or symmetric"), ("r:nat=yes", "1 to 200 hosts"),
        ("a b@a", "takes a router"), ("b@r r:nat=yes", "takes a router"), ("r:nat=yes b@r:loss=1%", "and no options"),
        ("r:nat=yes a a@r", "stands there twice"),
    ],
)  # fmt: skip
def test_what_is_written_wrongly_is_told(text, said):
    with pytest.raises(SpecError, match=said):
        parse(text)


def test_delay_is_a_quarter_of_both_round_trips():
    traffic = network(PLAIN, PLAIN, replace(PLAIN, rtt=0.3))
    traffic.take(0, packet(0, 1), 1.0)
    traffic.take(0, packet(0, 2), 1.0)
    assert arrivals(traffic) == pytest.approx([1.05, 1.10])
    assert traffic.counts["delivered"] == 2


def test_a_line_sends_one_after_the_other_and_the_slower_end_decides():
    fast, slow = Line(rate=8e6, rtt=0.0), Line(rate=8e5, rtt=0.0)
    traffic = network(fast, fast, slow)
    for _ in range(3):
        traffic.take(0, packet(0, 1), 0.0)
    assert arrivals(traffic) == pytest.approx([0.001, 0.002, 0.003])
    for _ in range(2):
        traffic.take(0, packet(0, 2), 1.0)
    assert arrivals(traffic) == pytest.approx([1.010, 1.020])


def test_two_senders_share_the_receivers_line():
    line = Line(rate=8e6, rtt=0.0)
    traffic = network(line, line, line)
    for source in (0, 1):
        traffic.take(source, packet(source, 2), 0.0)
    assert arrivals(traffic) == pytest.approx([0.001, 0.002])


def test_a_full_queue_drops():
    traffic = network(Line(rate=8e6, rtt=0.0, queue=0.2005), PLAIN, PLAIN)
    for _ in range(400):
        traffic.take(0, packet(0, 1), 0.0)
    assert traffic.counts["overflow"] == 199
    assert len(arrivals(traffic)) == 201


def test_a_big_piece_takes_the_headers_of_its_parts():
    whole = bytearray(packet(0, 1, 40 + 10 * 1000))
    whole[1], whole[2:4], whole[4:6] = 1, (40).to_bytes(2, "little"), (1000).to_bytes(2, "little")
    assert wire_bytes(bytes(whole)) == 10 * 1040


def test_loss_and_jitter_follow_the_seed_and_keep_the_order():
    line = replace(PLAIN, loss=0.2, jitter=0.05)

    def run(seed):
        traffic = network(line, line, line, seed=seed)
        for number in range(500):
            traffic.take(0, packet(0, 1, 100 + number), number * 0.01)
        found = []
        while (due := traffic.next_due()) is not None:
            found += [(due, len(sent)) for _, sent in traffic.release(due)]
        return found

    assert run(1) == run(1) != run(2)
    assert 350 < len(run(1)) < 450
    sizes = [size for _, size in run(1)]
    assert sizes == sorted(sizes)
    assert all(0.05 <= at - (size - HEADER - 100) * 0.01 < 0.11 for at, size in run(1))


def test_a_closed_host_is_answered_and_not_called():
    traffic = network(PLAIN, PLAIN, replace(PLAIN, inbound=False))
    traffic.take(0, packet(0, 2, ports=(1, 2)), 0.0)
    assert traffic.counts["blocked"] == 1
    traffic.take(2, packet(2, 0, ports=(2, 1)), 0.0)
    traffic.take(0, packet(0, 2, ports=(1, 2)), 0.1)
    traffic.take(0, packet(0, 2, ports=(9, 2)), 0.1)
    traffic.take(1, packet(1, 2, ports=(1, 2)), 0.1)
    assert traffic.counts["blocked"] == 3
    assert len(arrivals(traffic)) == 2
    traffic.take(0, packet(0, 2, ports=(1, 2)), 1000.0)
    assert traffic.counts["blocked"] == 4  # forgotten by now


HOME, OFFICE = socket.inet_aton("192.168.1.2"), socket.inet_aton("192.168.1.3")


def sent(traffic, number, source, destination, now):
    """Send a packet with ports from (address, port) to (address, port); what arrives: [(host, sender, receiver)]."""
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 44, 0, 0, 64, TCP, 0, source[0], destination[0])
    ip = ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:]
    body = struct.pack("!HH12xHH", source[1], destination[1], 0, 0) + b"data"
    pseudo = source[0] + destination[0] + struct.pack("!HH", TCP, len(body))
    body = body[:16] + checksum(pseudo + body).to_bytes(2, "big") + body[18:]
    traffic.take(number, bytes(HEADER) + ip + body, now)
    found = []
    while (due := traffic.next_due()) is not None:
        for host, arrived in traffic.release(due):
            ip, body = arrived[HEADER : HEADER + 20], arrived[HEADER + 20 :]
            assert not checksum(ip)
            assert not checksum(ip[12:20] + struct.pack("!HH", TCP, len(body)) + body)
            near, far = struct.unpack("!HH", body[:4])
            found.append((host, (ip[12:16], near), (ip[16:20], far)))
    return found


def checksum(data):
    """As RFC 1071 has it: over what contains its own checksum it gives 0."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def behind_a_router(nat="yes"):
    """Hosts 0 and 1 outside; router 2, and behind it hosts 3 and 4."""
    return Traffic(ADDRESSES, (PLAIN, PLAIN, replace(PLAIN, nat=nat, expire=60.0)), 0, [(2, HOME), (2, OFFICE)])


def test_a_router_gives_one_port_to_one_port_and_lets_in_who_was_called():
    traffic = behind_a_router()
    zero, one = (ADDRESSES[0], 80), (ADDRESSES[1], 80)
    ((host, seen, _),) = sent(traffic, 3, (HOME, 4001), zero, 0.0)
    assert (host, seen[0]) == (0, ADDRESSES[2])
    assert sent(traffic, 3, (HOME, 4001), one, 1.0) == [(1, seen, one)]
    ((_, other, _),) = sent(traffic, 4, (OFFICE, 4001), zero, 1.0)
    assert other[0] == seen[0]
    assert other[1] != seen[1]
    assert sent(traffic, 0, zero, seen, 2.0) == [(3, zero, (HOME, 4001))]
    assert sent(traffic, 1, one, other, 2.0) == []  # nobody called it from there
    assert sent(traffic, 0, (ADDRESSES[0], 81), seen, 2.0) == []
    assert sent(traffic, 0, zero, (seen[0], 4001), 2.0) == []
    assert traffic.counts["blocked"] == 3


def test_a_symmetric_router_gives_each_receiver_another_port():
    traffic = behind_a_router("symmetric")
    ((_, seen, _),) = sent(traffic, 3, (HOME, 4001), (ADDRESSES[0], 80), 0.0)
    ((_, other, _),) = sent(traffic, 3, (HOME, 4001), (ADDRESSES[1], 80), 0.0)
    assert seen[1] != other[1]
    assert sent(traffic, 3, (HOME, 4001), (ADDRESSES[0], 80), 1.0) == [(0, seen, (ADDRESSES[0], 80))]
    assert sent(traffic, 1, (ADDRESSES[1], 80), seen, 1.0) == []


def test_a_mapping_expires_when_nothing_passes():
    traffic = behind_a_router()
    zero = (ADDRESSES[0], 80)
    ((_, seen, _),) = sent(traffic, 3, (HOME, 4001), zero, 0.0)
    assert sent(traffic, 0, zero, seen, 50.0)
    assert sent(traffic, 3, (HOME, 4001), zero, 100.0) == [(0, seen, zero)]
    assert sent(traffic, 0, zero, seen, 170.0) == []
    ((_, later, _),) = sent(traffic, 3, (HOME, 4001), zero, 170.0)
    assert later[1] != seen[1]


def test_neighbours_behind_a_router_talk_without_it_and_have_no_way_back_in():
    traffic = behind_a_router()
    assert sent(traffic, 3, (HOME, 1), (OFFICE, 2), 0.0) == [(4, (HOME, 1), (OFFICE, 2))]
    assert sent(traffic, 3, (HOME, 1), (ADDRESSES[2], 2), 0.0) == []
    assert sent(traffic, 0, (ADDRESSES[0], 1), (OFFICE, 2), 0.0) == []  # private addresses lead nowhere outside


def test_a_cut_is_between_two_sides_until_it_is_mended():
    traffic = network(PLAIN, PLAIN, PLAIN)
    traffic.cut(([0], [1]))
    for source, destination in ((0, 1), (1, 0), (0, 2), (2, 1)):
        traffic.take(source, packet(source, destination), 0.0)
    assert traffic.counts["cut"] == 2
    traffic.heal()
    traffic.take(0, packet(0, 1), 0.0)
    assert len(arrivals(traffic)) == 3


def test_strange_packets_go_nowhere():
    traffic = network(PLAIN, PLAIN, PLAIN)
    sixth = bytearray(packet(0, 1))
    sixth[HEADER] = 0x60
    for strange in (bytes(sixth), packet(0, 0), bytes(HEADER) + b"\x45" + bytes(40)):
        traffic.take(0, strange, 0.0)
    assert traffic.next_due() is None
