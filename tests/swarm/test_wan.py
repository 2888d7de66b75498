"""The emulated network keeps its promises, and a swarm on it survives distance, loss, jitter and partitions."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from lab_swarm import client, generate, greedy, needs_network, processes, save_model
from netlab import measure
from netlab.forwarder import inside
from netlab.lab import Lab, LabError
from shoal.peer.errors import NoRouteError

from tests.steadiness import in_time

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(180), needs_network]

WAN = str(Path(__file__).resolve().parents[2] / "scripts" / "wan")
STEPS = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def expected(folder):
    return greedy(folder, STEPS)


@pytest.mark.alone
def test_delay_rate_and_firewall_are_as_told():
    with Lab("rate=50Mbit rtt=80ms a b:rtt=20ms home:inbound=no,rtt=20ms") as lab:
        times = measure.round_trips(lab, "a", "b", 20)
        assert times[0] >= 0.050  # the mean of both
        in_time(times[0] < 0.060, times)

        assert not measure.reachable(lab, "a", "home", 0.5)
        assert measure.reachable(lab, "home", "a")
        rate = measure.rate(lab, "home", "b", 2.0)
        assert rate < 51e6
        in_time(rate > 35e6, rate)
        lab.set("home", "inbound=yes")
        assert measure.reachable(lab, "a", "home")


@pytest.mark.alone
def test_a_router_translates_real_connections():
    with Lab("rtt=2ms a home:nat=yes,expire=1s pc@home laptop@home office:nat=yes desk@office") as lab:
        assert lab.hosts["pc"] == lab.hosts["desk"] == "192.168.1.2"
        assert lab.public["pc"] == lab.public["laptop"] != lab.public["desk"]
        for near, far in (("pc", "a"), ("laptop", "a"), ("laptop", "pc")):
            assert measure.reachable(lab, near, far)
        assert not measure.reachable(lab, "a", "pc", 0.3)
        in_time(measure.rate(lab, "pc", "a", 1.0) > 50e6)
        with lab.socket("a", socket.SOCK_DGRAM) as there, lab.socket("pc", socket.SOCK_DGRAM) as here:
            there.settimeout(0.5)
            here.settimeout(0.5)
            there.bind((lab.hosts["a"], 0))
            here.sendto(b"question", there.getsockname())
            question, seen = there.recvfrom(100)
            assert (question, seen[0]) == (b"question", lab.public["pc"])
            there.sendto(b"answer", seen)
            assert here.recv(100) == b"answer"
            time.sleep(1.1)
            there.sendto(b"too late", seen)
            with pytest.raises(TimeoutError):
                here.recv(100)
        with pytest.raises(LabError, match="name its router 'home'"):
            lab.set("pc", "loss=1%")


@pytest.mark.alone
def test_loss_jitter_and_cuts_are_as_told():
    with Lab("rtt=10ms loss=10% jitter=30ms a b c") as lab:
        lost = measure.loss(lab, "a", "b", 1500)
        assert lost > 0.07
        in_time(lost < 0.13, lost)
        for host in lab.hosts:
            lab.set(host, "loss=0%")
        times = measure.round_trips(lab, "a", "b", 60)
        assert times[0] > 0.010
        assert times[30] > 0.030
        in_time(times[30] < 0.055, times)
        lab.cut(["a"])
        assert not measure.reachable(lab, "a", "b", 0.3)
        assert measure.reachable(lab, "c", "b")
        lab.heal()
        assert measure.reachable(lab, "a", "b")


@pytest.mark.calm
def test_nothing_is_left_however_it_ends(tmp_path):
    """The forwarder is killed, while something runs on a host that does not hear SIGTERM."""
    with Lab("a") as lab:
        ready = tmp_path / "ready"
        stubborn = subprocess.Popen(
            [*lab.command("a"), "sh", "-c", f"trap '' TERM; touch {ready}; while :; do sleep 0.1; done"]
        )
        while not ready.exists():
            time.sleep(0.01)
        inode = Path(f"/proc/{stubborn.pid}/ns/net").stat().st_ino
        os.kill(lab.pid, signal.SIGKILL)
        assert stubborn.wait(10) == -signal.SIGKILL
        deadline = time.monotonic() + 2.0  # what it had begun at that moment ends a moment later
        while inside({inode}) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not inside({inode})
        with pytest.raises(LabError, match="no network named"):
            lab.heal()


@pytest.mark.calm
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_its_network(number, tmp_path):
    """As from a terminal: the whole process group hears it."""
    note, ready = tmp_path / "heard", tmp_path / "ready"
    wait = f"stat -Lc %i /proc/self/ns/net > {ready}; while :; do sleep 0.05; done"
    command = [WAN, "run", "a", "--on", "a", "--", "sh", "-c", f"trap 'echo x >> {note}; exit 7' INT TERM; {wait}"]
    running = subprocess.Popen(command, start_new_session=True)
    while not (ready.exists() and ready.read_text()):
        time.sleep(0.01)
    inode = int(ready.read_text())
    assert inside({inode})
    os.killpg(running.pid, number) if number == signal.SIGINT else os.kill(running.pid, number)
    assert running.wait(15) == 7
    assert note.read_text() == "x\n"
    assert not inside({inode})


@pytest.mark.calm
def test_the_command_for_people(tmp_path):
    def wan(*argv):
        return subprocess.run([WAN, *argv], capture_output=True, text=True, check=False, timeout=30)

    script = f"{WAN} exec b -- cat /proc/net/route && {WAN} cut a b && {WAN} set a rtt=1ms && {WAN} status"
    done = wan("run", "rtt=3ms", "a", "b", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert "eth0" not in done.stdout
    assert "wan0" in done.stdout
    assert '"11.0.2.1"' in done.stdout
    for argv, said in (
        (("run", "a", "b"), "after `--`"),
        (("run", "rtt=x", "a", "--", "true"), "rtt=x: 'x' is not a time"),
        (("exec", "a", "--name", "none-such", "--", "true"), "no network named"),
        (("run", "a", "--on", "b", "--", "true"), "there is no host 'b'"),
    ):
        failed = wan(*argv)
        assert failed.returncode == 1
        assert said in failed.stderr
        assert len(failed.stderr.splitlines()) == 1


@pytest.mark.calm
async def test_a_swarm_survives_a_partition_loss_and_jitter(folder, expected):
    with Lab("rate=100Mbit rtt=20ms bulk=no boot p q me") as lab:
        async with (
            processes(lab, folder, {"p": "0:2", "q": "2:4"}) as (invite, _),
            client(lab, folder, invite) as (joined, model),
        ):
            await joined.wait_covered(30)
            began = time.monotonic()
            tokens, stats = await generate(joined, model, STEPS)
            usual_s = time.monotonic() - began
            assert tokens == expected
            in_time(stats.repairs == 0, stats)
            await lossy(lab, joined, model, expected)
            await partitioned(lab, joined, model, expected, usual_s)


async def partitioned(lab, joined, model, expected, usual_s):
    """An error that names the blocks behind the cut; within 10 s of its mending tokens flow again, the same ones."""

    async def disturb(number):
        if number == 8:
            lab.cut(["q"])

    with pytest.raises(NoRouteError) as failure:
        await generate(joined, model, STEPS, disturb, wait_s=1.0)
    assert set(failure.value.missing) == {2, 3}
    lab.heal()
    began = time.monotonic()
    assert (await generate(joined, model, STEPS, wait_s=10.0))[0] == expected
    in_time(time.monotonic() - began < 10.0 + usual_s)


async def lossy(lab, joined, model, expected):
    """5 % loss and 200 ms of jitter: slower, no failures, nobody banned."""
    for host in lab.hosts:
        lab.set(host, "loss=5%", "jitter=200ms")
    runs = await asyncio.gather(*(generate(joined, model, STEPS) for _ in range(8)))
    assert [tokens for tokens, _ in runs] == [expected] * 8
    assert not joined.knowledge().banned
    assert lab.stats()["lost"] > 20
    for host in lab.hosts:
        lab.set(host, "loss=0%", "jitter=0ms")
