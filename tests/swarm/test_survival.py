"""What a swarm of real processes survives: deaths of our own daemons, no bootstrap nodes, hangs, slowness, leaving."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.steadiness import in_time
from tests.swarm.test_peers import expected, folder, generate, swarm  # noqa: F401  fixtures

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
REJOIN_S = 15.0


def daemon_of(pid: int) -> psutil.Process:
    """The libp2p daemon of a process."""
    (found,) = [child for child in psutil.Process(pid).children() if "p2pd" in child.name()]
    return found


def blown(work):
    """Start something beside the generation, and hold on to it."""
    return asyncio.get_running_loop().create_task(work)


@pytest.mark.alone
async def test_sessions_outlive_daemons_and_bootstrap_nodes_and_peers_rejoin(folder, expected):  # noqa: F811
    """A peer's daemon dies, then the client's own, then the bootstrap node, then the daemon of a peer that must rejoin
    through what it remembers. Streams go through the daemons: direct ones would not notice the client's own death."""
    async with swarm(folder, ["0:6", "0:6"], options=["--direct-port", "none"]) as (joined, model, peers, node):
        await asyncio.sleep(6.0)  # until peers have remembered one another
        addrs = {peer.peer_id: peer.addrs for peer in (await joined.refresh()).peers}
        rejoined, tasks = {}, []

        async def rejoin(name, number):
            began = time.monotonic()
            daemon_of(peers[name].pid).kill()
            assert (await peers[name].event("event", "unhealthy"))["peer"] == name
            unhealthy_s = time.monotonic() - began
            assert (await peers[name].event("event", "online"))["peer"] == name
            rejoined[number] = (unhealthy_s, time.monotonic() - began)

        async def disturb(number, session):
            if number == 6:
                tasks.append(blown(rejoin(session.route[0].peer_id, number)))
            if number == 12:
                await asyncio.wait(tasks)
                daemon_of(psutil.Process().pid).kill()
            if number == 18:
                assert not joined.knowledge().banned
                node.signal(signal.SIGKILL)
            if number == 24:
                tasks.append(blown(rejoin(session.route[0].peer_id, number)))
            if number == 30:
                await asyncio.wait(tasks)

        tokens, stats = await generate(joined, model, disturb)
        assert tokens == expected
        assert stats.repairs + stats.moves >= 3
        for task in tasks:
            await task
        in_time(all(unhealthy_s < 2.0 and online_s < REJOIN_S for unhealthy_s, online_s in rejoined.values()), rejoined)
        # Where they were, though nobody had told them a port: who comes back knows the others by where they were.
        assert {peer.peer_id: peer.addrs for peer in (await joined.refresh()).peers} == addrs


@pytest.mark.alone
async def test_a_hang_is_over_in_three_seconds_and_late_answers_are_nothing(folder, expected):  # noqa: F811
    async with swarm(folder, ["0:6", "0:6"]) as (joined, model, peers, _node):
        times, hung = [time.monotonic()], []

        async def disturb(number, session):
            times.append(time.monotonic())
            if number == 8:
                hung.append(peers[session.route[0].peer_id])
                hung[0].signal(signal.SIGSTOP)
            if number == 20:
                hung[0].signal(signal.SIGCONT)
            if number > 20:
                await asyncio.sleep(0.05)  # what it had to say comes in the middle of this

        try:
            tokens, stats = await generate(joined, model, disturb)
        finally:
            for child in hung:
                child.signal(signal.SIGCONT)
        assert tokens == expected
        in_time(max(b - a for a, b in itertools.pairwise(times)) <= 3.0)
        in_time(stats.repairs + stats.moves == 1, stats)


@pytest.mark.alone
async def test_a_peer_that_gets_a_fiftieth_of_its_time_is_left_without_blame(folder, expected):  # noqa: F811
    async with swarm(folder, ["0:6", "0:6"]) as (joined, model, peers, _node):
        slowing, left = [], []

        async def slow_down(child):
            with contextlib.suppress(ProcessLookupError):
                try:
                    while True:
                        child.signal(signal.SIGSTOP)
                        await asyncio.sleep(0.098)
                        child.signal(signal.SIGCONT)
                        await asyncio.sleep(0.002)  # for two tokens at most
                finally:
                    child.signal(signal.SIGCONT)

        async def disturb(number, session):
            name = session.route[0].peer_id
            if number == 10:
                slowing.extend([name, blown(slow_down(peers[name]))])
            if slowing and name != slowing[0] and not left:
                left.append(number)

        try:
            tokens, stats = await generate(joined, model, disturb)
        finally:
            slowing[1].cancel()
        assert tokens == expected
        in_time((stats.repairs, stats.moves) == (0, 1) and left[0] <= 10 + 20, stats, left)
        assert not joined.knowledge().banned


@pytest.mark.alone
async def test_a_leaving_peer_hands_its_sessions_over_and_is_gone(folder, expected):  # noqa: F811
    async with swarm(folder, ["0:6", "0:3", "3:6"]) as (joined, model, peers, _node):
        async with asyncio.TaskGroup() as tasks:
            left = []

            async def disturb(number, session):
                if number == 8 and not left:
                    left.append(session.route[0].peer_id)
                    peers[left[0]].signal(signal.SIGTERM)
                if number > 8:
                    await asyncio.sleep(0.02)

            runs = [tasks.create_task(generate(joined, model, disturb)) for _ in range(4)]
            while not left:
                await asyncio.sleep(0.01)
            began = time.monotonic()
            assert await peers[left[0]].status() == 0
            in_time(time.monotonic() - began < 10.0)  # and not when the drain time is over
        for tokens, stats in (run.result() for run in runs):
            assert tokens == expected
            in_time(stats.repairs == 0, stats)
        assert sum(run.result()[1].moves for run in runs) >= 1


@pytest.mark.calm
def test_a_peer_gives_back_what_vanished_clients_held(tmp_path):
    """Leases, descriptors and memory of a real peer, by the benchmark in a small form."""
    found = tmp_path / "found.json"
    command = [str(ROOT / "scripts" / "bench"), "memory", "--sessions", "100", "--json", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert found.exists(), done.stdout + done.stderr
    figures = json.loads(found.read_text())
    assert (figures["sessions_warm"], figures["sessions"]) == (50, 100)
    in_time(figures["freed_s"] <= 10.0, figures)
    in_time(figures["freed_half_open_s"] <= 30.0, figures)
    assert figures["descriptors_after"] <= figures["descriptors_before"] + 2
    assert figures["rss_growth_percent"] < 5.0
    assert done.returncode == 0
