"""A device that is lost while it serves: clients are told, the announcement goes, the peer ends with one line."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING

import pytest
from processes import Processes
from shoal.dht.invite import Invite
from shoal.peer import watchdog
from shoal.peer.config import PeerConfig, PeerError
from shoal.peer.engine import DeviceEngine
from shoal.peer.serve import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes() as running:
        yield running


async def test_a_lost_device_ends_the_peer_and_its_announcement(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The device thread runs as ever until the first client comes; from then on every forward fails for good."""
    token = (await asyncio.to_thread(processes.start("bootstrap", "--json").event, "invite"))["invite"]
    fails = threading.Event()
    forward = DeviceEngine._forward

    def failing(engine: DeviceEngine, batch: tuple) -> list:
        if not fails.is_set():
            return forward(engine, batch)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def examine(engine: DeviceEngine, error: Exception) -> None:
        engine.broken = "illegal memory access" in str(error)

    monkeypatch.setattr(DeviceEngine, "_forward", failing)
    monkeypatch.setattr(DeviceEngine, "_examine", examine)
    await until_it_leaves(token, processes, capsys, fails.set)


async def test_a_device_that_hangs_ends_the_peer_and_its_announcement(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the first client on no forward comes back. A CPU has no watchdog by itself: here it gets one."""
    token = (await asyncio.to_thread(processes.start("bootstrap", "--json").event, "invite"))["invite"]
    hangs, over = threading.Event(), threading.Event()
    forward = DeviceEngine._forward

    def hanging(engine: DeviceEngine, batch: tuple) -> list:
        if hangs.is_set():
            over.wait(100)
        return forward(engine, batch)

    monkeypatch.setattr(DeviceEngine, "_forward", hanging)
    monkeypatch.setattr(DeviceEngine, "quick", lambda *_: False)  # else this test's own loop would hang
    monkeypatch.setitem(watchdog.LIMITS_S, "cpu", 2.0)
    monkeypatch.setattr(watchdog, "end_in", lambda _seconds: None)
    try:
        await until_it_leaves(token, processes, capsys, hangs.set)
    finally:
        over.set()


async def until_it_leaves(
    token: str, processes: Processes, capsys: pytest.CaptureFixture[str], harm: Callable[[], None]
) -> None:
    """A peer serves, its device is harmed, a client comes: it and the swarm are told in one line each."""
    config = PeerConfig(Invite.parse(token), "demo", drain_s=30.0, json=True)
    async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
        peer = tasks.create_task(ended(config))
        while "online" not in capsys.readouterr().out:
            assert not peer.done(), peer.result()
            await asyncio.sleep(0.2)
        harm()
        client = tasks.create_task(asyncio.to_thread(processes.run, "generate", "x", "--join", token))
        said = await peer
        done = await client
        status = await asyncio.to_thread(processes.run, "status", "--join", token, "--json")
    assert "cpu stopped working" in said
    assert "\n" not in said
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert json.loads(status.stdout)["missing"] == list(range(12))


async def ended(config: PeerConfig) -> str:
    with pytest.raises(PeerError) as error:
        await serve(config)
    return str(error.value)
