"""A peer that only relays reach, when its relay has been away: it joins anew, and only then."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from shoal.dht import reach as reach_module
from shoal.dht.host import Host
from shoal.dht.identity import Identity
from shoal.dht.reach import RELAY_LOOK_S, RELAY_LOOKS, DialBack, relays_lost

from tests.sim.clock import run

ME, RELAY = Identity.generate().peer_id, Identity.generate().peer_id
OWN = f"/ip4/192.168.1.2/tcp/4001/p2p/{ME}"
THROUGH = f"/ip4/198.51.100.1/tcp/4001/p2p/{RELAY}/p2p-circuit/p2p/{ME}"
MINUTE = RELAY_LOOK_S * RELAY_LOOKS
NO = (DialBack(False, "203.0.113.5"),)  # a node that answers, and does not get through


class Daemon:
    """What it says of its addresses at each look, the last for ever; an error is raised."""

    def __init__(self, *looks) -> None:
        self.looks = list(looks)

    async def identify(self):
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, Exception):
            raise look
        return ME, [SimpleNamespace(maddr=maddr) for maddr in look]


def lasts(monkeypatch, *looks, answers=NO, relayed=True, limit_s=10 * MINUTE):
    """Seconds until a host with these looks is told to join anew; None if it is not within `limit_s`."""

    async def asked(*_):
        return list(answers)

    async def current_maddrs(host):
        return tuple(each.maddr for each in (await host.p2p.identify())[1])

    monkeypatch.setattr(reach_module, "ask_reach", asked)
    monkeypatch.setattr(Host, "current_maddrs", current_maddrs)

    async def main():
        host = Host(Daemon(*looks), Identity.generate(), (), asyncio.Event(), relayed=relayed)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limit_s):
                await relays_lost(host, [RELAY])
        except TimeoutError:
            return None
        return loop.time()

    return run(main())


def test_without_a_relay_for_a_minute_it_joins_anew(monkeypatch) -> None:
    assert lasts(monkeypatch, [OWN]) == pytest.approx(MINUTE, abs=0.1)
    assert lasts(monkeypatch, [OWN, THROUGH], [OWN]) == pytest.approx(MINUTE + RELAY_LOOK_S, abs=0.1)


def test_a_relay_that_comes_back_in_time_counts(monkeypatch) -> None:
    assert lasts(monkeypatch, [OWN], [OWN], [THROUGH], [OWN]) == pytest.approx(MINUTE + 3 * RELAY_LOOK_S, abs=0.1)
    assert lasts(monkeypatch, [THROUGH]) is None


def test_while_nobody_answers_there_is_nobody_to_join(monkeypatch) -> None:
    assert lasts(monkeypatch, [OWN], answers=()) is None


def test_a_daemon_that_is_going_and_hosts_without_relays_are_others_matter(monkeypatch) -> None:
    assert lasts(monkeypatch, EOFError()) is None
    assert lasts(monkeypatch, [OWN], relayed=False) is None
