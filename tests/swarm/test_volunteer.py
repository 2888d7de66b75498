"""What a volunteer asks of running peers, with real processes: pause under load, resume, who is there, who is meant."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import time
from contextlib import asynccontextmanager, suppress

import pytest
import torch
from processes import Processes
from shoal.client.options import Model, SessionOptions
from shoal.client.swarm import join_swarm
from shoal.dht.invite import Invite
from shoal.peer import attended, sockets
from shoal.peer.errors import NoRouteError

from tests.steadiness import in_time
from tests.swarm.test_peers import BLOCKS, PROMPT, STEPS, expected, folder, generate, load_model  # noqa: F401  fixtures

pytestmark = [pytest.mark.swarm, pytest.mark.calm, pytest.mark.timeout(240)]

TYPED_S = 10
OPTIONS = ("--dtype", "float32", "--device", "cpu", "--json", "--drain", "20")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A runtime folder of our own, so that other peers of this user are not meant."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        yield


@pytest.fixture(scope="module")
def shoal(home):
    with Processes() as processes:
        yield processes


@pytest.fixture(scope="module")
def swarm(shoal, folder):  # noqa: F811
    """Two peers, alice and bob, each with all blocks: (invite, process by peer id, peer id by name)."""
    invite = shoal.start("bootstrap", "--json", "--model", "tiny").event("invite")["invite"]
    join = ("peer", "--model", str(folder), "--join", invite, "--blocks", f"0:{BLOCKS}", *OPTIONS)
    started = {name: shoal.start(*join, "--public-name", name) for name in ("alice", "bob")}
    ids = {name: peer.event("event", "online")["peer"] for name, peer in started.items()}
    return invite, {ids[name]: peer for name, peer in started.items()}, ids


@pytest.fixture(autouse=True)
def everybody_serves(swarm, shoal):
    yield
    assert shoal.run("resume", "--all").returncode == 0


@asynccontextmanager
async def client(swarm, folder):  # noqa: F811
    model = load_model(str(folder), "float32")
    async with join_swarm(Invite.parse(swarm[0]), Model(BLOCKS, 64, model.checkpoint.revision)) as joined:
        await joined.wait_covered(30)
        yield joined, model


def state_of(peer_id):
    states = [sockets.ask(path, {"do": "state"}) for path in sockets.running()]
    return next(state for state in states if state["peer"] == peer_id)


async def tell(peer_id, **request):
    """What `shoal pause` and `shoal resume` do, without starting a process for each."""
    (path,) = sockets.folder().glob(f"{peer_id[-8:]}-*.sock")
    return await asyncio.to_thread(sockets.ask, path, request, 60.0)


async def one_step(joined, model, **options):
    async with joined.session(SessionOptions(max_tokens=8, **options)) as session:
        await session.step(model.ends.embed(torch.tensor(PROMPT[:4]), torch.arange(4)))
        return session.route


async def nothing(_number, _session):
    return


def test_what_runs_here_is_shown(swarm, shoal):
    done = shoal.run("peers", "--json")
    states = {state["name"]: state for state in map(json.loads, done.stdout.splitlines())}
    assert {name: state["peer"] for name, state in states.items()} == swarm[2]
    assert all((state["state"], state["blocks"]) == ("serving", [0, BLOCKS]) for state in states.values())
    assert {state["pid"] for state in states.values()} == {peer.process.pid for peer in swarm[1].values()}
    table = shoal.run("peers").stdout
    assert swarm[2]["alice"][-6:] in table
    assert "serving" in table


async def test_a_pause_under_a_running_generation_changes_no_token(swarm, shoal, folder, expected):  # noqa: F811
    async with client(swarm, folder) as (joined, model):
        paused = []

        async def disturb(number, session):
            if number == 8:
                peer_id = session.route[0].peer_id
                command = "pause", "--peer", peer_id[-6:], "--json"
                paused.append(json.loads((await asyncio.to_thread(shoal.run, *command)).stdout))
                assert session.route[0].peer_id != peer_id

        tokens, _ = await generate(joined, model, disturb)
        assert tokens == expected
        (after,) = paused
        assert (after["state"], after["moved"], after["ended"], after["sessions"]) == ("paused", 1, 0, 0)
        states = {peer.peer_id: peer.state for peer in (await joined.refresh()).peers}
        assert sorted(states.values()) == ["online", "paused"]
        assert states[after["peer"]] == "paused"
        assert "paused" in shoal.run("status", "--join", swarm[0]).stdout


@pytest.mark.alone
async def test_a_resumed_peer_serves_within_a_second_and_loads_nothing(swarm, folder):  # noqa: F811
    alice, bob = swarm[2]["alice"], swarm[2]["bob"]
    async with client(swarm, folder) as (joined, model):
        for peer_id in (alice, bob):
            await tell(peer_id, do="pause")
        await joined.refresh()
        with pytest.raises(NoRouteError, match="paused"):
            await one_step(joined, model)
        before = state_of(alice)
        said = len(swarm[1][alice].errors)
        began = time.monotonic()
        after = await tell(alice, do="resume")
        await joined.refresh()
        (hop,) = await one_step(joined, model)
        took_s = time.monotonic() - began
    assert hop.peer_id == alice
    assert (before["state"], after["state"], before["pid"]) == ("paused", "serving", after["pid"])
    assert [line for line in swarm[1][alice].errors[said:] if "token takes" in line or "taking" in line] == []
    in_time(took_s < 1.0, took_s)


async def test_thirty_generations_while_peers_pause_and_resume(swarm, folder, expected):  # noqa: F811
    """0 failures: at any moment at least one of the two serves."""
    rng = random.Random(5)
    async with client(swarm, folder) as (joined, model):
        done = asyncio.Event()
        served = {peer_id: state_of(peer_id)["sessions_served"] for peer_id in swarm[1]}
        moved = []

        async def volunteer():
            names = list(swarm[1])
            while not done.is_set():
                names.reverse()
                moved.append((await tell(names[0], do="pause"))["moved"])
                await asyncio.sleep(rng.uniform(0.0, 0.2))
                await tell(names[0], do="resume")
                await asyncio.sleep(rng.uniform(0.0, 0.2))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(volunteer())
            for _ in range(10):
                results = await asyncio.gather(*(generate(joined, model, nothing) for _ in range(3)))
                assert [tokens for tokens, _ in results] == [expected] * 3
            done.set()
        assert sum(moved) >= 3
        assert all(state_of(peer_id)["sessions_served"] > count for peer_id, count in served.items())


async def test_a_session_that_nobody_else_can_serve_waits_for_the_volunteer(swarm, folder, expected):  # noqa: F811
    alice, bob = swarm[2]["alice"], swarm[2]["bob"]
    async with client(swarm, folder) as (joined, model):
        await tell(bob, do="pause")
        told = []

        async def disturb(number, _session):
            if number == 8:
                told.append(await tell(alice, do="pause", drain_s=0.2))
                asyncio.get_running_loop().call_later(0.5, lambda: tasks.create_task(tell(alice, do="resume")))

        async with asyncio.TaskGroup() as tasks:
            tokens, stats = await generate(joined, model, disturb)
    assert tokens == expected
    assert (told[0]["moved"], told[0]["ended"]) == (0, 1)
    assert stats.repairs >= 1


def test_which_peer_is_meant(swarm, shoal):
    several = shoal.run("pause")
    assert several.returncode == 1
    assert "several peers could be meant" in several.stderr
    assert "alice" in several.stderr
    assert "Traceback" not in several.stderr
    unknown = shoal.run("resume", "--peer", "carol")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "no peer here is called 'carol'" in unknown.stderr
    assert "paused" in shoal.run("pause", "--peer", "bob").stdout
    states = {state["name"]: state["state"] for state in map(state_of, swarm[1])}
    assert states == {"alice": "serving", "bob": "paused"}
    assert "paused with `shoal pause`" in shoal.run("peers").stdout
    assert "serving" in shoal.run("resume", "--peer", swarm[2]["bob"]).stdout


@pytest.mark.parametrize(
    "line",
    [b"\n", b"\xff\xfe\n", b"[1]\n", b"{}\n", b'{"do": "stop"}\n', b'{"do": "pause", "drain_s": -1}\n',
     b'{"do": "pause", "drain_s": true}\n', b"[" * 4000 + b"\n", b"x" * 100_000],
)  # fmt: skip
def test_nonsense_on_the_socket_is_answered_and_hurts_nobody(swarm, line):
    for path in sockets.running():
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(10)
            asking.connect(str(path))
            with suppress(BrokenPipeError, ConnectionResetError):  # it hung up in the midst of what is too long
                asking.sendall(line)
                assert "error" in json.loads(asking.makefile("rb").readline())
    assert {state_of(peer_id)["state"] for peer_id in swarm[1]} == {"serving"}


def test_names_are_announced_and_shown(swarm, shoal):
    shown = json.loads(shoal.run("status", "--join", swarm[0], "--json").stdout)
    assert {peer["peer"]: peer["name"] for peer in shown["peers"]} == {
        peer_id: name for name, peer_id in swarm[2].items()
    }


def test_with_idle_only_a_peer_serves_while_nobody_types_and_not_when_somebody_does(swarm, shoal, folder):  # noqa: F811
    """Somebody is a terminal of ours, whose input the kernel dates to 8 s. The machine may be loaded as it likes."""
    if attended.input_s() is not None and attended.input_s() < 2 * TYPED_S:
        pytest.skip("somebody uses this machine now")
    wishes = "--idle-only", "--idle-cpu", "0", "--idle-input", str(TYPED_S), "--idle-after", "1"
    join = "peer", "--model", str(folder), "--join", swarm[0], "--blocks", "0:1", *OPTIONS
    peer_id = shoal.start(*join, *wishes).event("event", "online")["peer"]
    state = until(peer_id, "serving")
    ours, theirs = os.openpty()
    try:
        os.write(ours, b"hello\n")
        os.read(theirs, 10)
        state = until(peer_id, "paused")
        assert state["why"] == [f"somebody used this machine less than {TYPED_S} s ago"]
        assert "somebody used this machine" in shoal.run("peers").stdout
        shoal.run("resume", "--peer", peer_id)
        assert state_of(peer_id)["state"] == "paused"  # what the volunteer asked for by --idle-only still holds
        os.close(theirs)
        os.close(ours)
        until(peer_id, "serving")
    finally:
        shoal.running.pop().end()


def until(peer_id, state, timeout_s=40.0):
    """The peer's account of itself once it is in that state."""
    end = time.monotonic() + timeout_s
    while (now := state_of(peer_id))["state"] != state:
        in_time(time.monotonic() < end, now)
        time.sleep(0.2)
    return now


def test_a_killed_peer_is_not_shown_and_its_socket_goes(swarm, shoal):
    """The last one here: bob does not come back."""
    bob, alice = swarm[2]["bob"], swarm[2]["alice"]
    os.kill(swarm[1][bob].process.pid, signal.SIGKILL)
    swarm[1][bob].process.wait()
    assert len(list(sockets.folder().iterdir())) == 2
    shown = shoal.run("peers", "--json").stdout
    assert alice in shown
    assert bob not in shown
    assert len(list(sockets.folder().iterdir())) == 1
    assert "paused" in shoal.run("pause").stdout  # there is only one that can be meant
