"""Ctrl-C and SIGTERM while a command fetches its model from a hub that says nothing more: it leaves at once."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest
import torch
from processes import Processes
from shoal.dht import ending
from shoal.dht.identity import Identity
from shoal.dht.invite import Invite
from shoal.peer.config import PeerConfig
from shoal.peer.engine import DeviceEngine, Output
from shoal.peer.serve import serve

from tests.steadiness import in_time
from tests.unit.hub_loopback import Hub, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from processes import Running

pytestmark = [pytest.mark.swarm, pytest.mark.calm, pytest.mark.timeout(120)]

BLOCKS = 6
AT_ONCE_S = 4.0  # it takes a second where nothing else runs
SENT = 100  # bytes, before the hub falls silent
SHOW_CURSOR, HIDE_CURSOR = b"\x1b[?25h", b"\x1b[?25l"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of six blocks, in as many shards."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=BLOCKS, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=256, max_position_embeddings=512,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(path, max_shard_size="190KB")
    return path


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[Hub]:
    with serving(Hub(files={path.name: path.read_bytes() for path in folder.iterdir()})) as hub:
        yield hub


@pytest.fixture(scope="module")
def environment(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of all commands here: one server of forks will do."""
    cache = tmp_path_factory.mktemp("hub")
    return {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(cache), "NO_PROXY": "127.0.0.1"}


@pytest.fixture(autouse=True)
def cache(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what comes from the hub is kept; empty."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    folder = Path(environment["HF_HUB_CACHE"])
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@pytest.fixture(scope="module")
def node(hub: Hub, environment: dict[str, str]) -> Iterator[Running]:
    with Processes() as processes:
        with mock.patch.dict(os.environ, environment):
            node = processes.start("bootstrap", "--json", "--model", hub.repo)
        yield node


@pytest.fixture(scope="module")
def invite(node: Running) -> str:
    return node.event("invite")["invite"]


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes() as processes:
        yield processes


def shards(hub: Hub) -> list[str]:
    return sorted(name for name in hub.files if name.endswith(".safetensors"))


def silent(hub: Hub, *names: str) -> None:
    """From now on these files do not come to their end."""
    hub.stalls, hub.stalled = dict.fromkeys(names, SENT), queue.SimpleQueue()


def fetched_until_silence(hub: Hub, cache: Path) -> str:
    """Wait for it; the file that is under way."""
    name = hub.stalled.get(timeout=60)
    while half_fetched(cache) != [SENT]:
        time.sleep(0.01)
    return name


def leaves(process: subprocess.Popen, number: signal.Signals) -> int:
    """The exit status after a signal."""
    began = time.monotonic()
    process.send_signal(number)
    status = process.wait(30)
    in_time(time.monotonic() - began < AT_ONCE_S)
    return status


def half_fetched(cache: Path) -> list[int]:
    """Sizes of files that will go on from there the next time; under its own name there is none of them."""
    assert all(path.exists() for path in cache.rglob("snapshots/*/*"))
    return [path.stat().st_size for path in cache.rglob("*.incomplete")]


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["peer"], 0),
        (["peer", "--dry-run"], 130),
        (["api", "--port", "0"], 0),
        (["generate", "x"], 130),
        (["status", "--model", "org/tiny"], 130),
        (["plan"], 130),
        (["doctor", "--model", "org/tiny"], 130),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_command_that_reads_a_model_s_config(
    hub: Hub, cache: Path, processes: Processes, invite: str, command: list[str], status: int
) -> None:
    silent(hub, "config.json")
    running = processes.start(*command, "--join", invite)
    assert fetched_until_silence(hub, cache) == "config.json"
    assert leaves(running.process, signal.SIGINT) == status, running.errors
    assert half_fetched(cache) == [SENT]
    assert not [line for line in running.errors if "Traceback" in line]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_api_that_fetches_the_ends(
    hub: Hub, cache: Path, processes: Processes, invite: str, number: signal.Signals
) -> None:
    silent(hub, *shards(hub))
    running = processes.start("api", "--port", "0", "--join", invite)
    fetched_until_silence(hub, cache)
    assert leaves(running.process, number) == 0
    assert half_fetched(cache) == [SENT]


def test_a_peer_that_fetches_its_blocks_withdraws_what_it_announced_and_gives_the_terminal_back(
    hub: Hub, cache: Path, processes: Processes, invite: str
) -> None:
    silent(hub, *shards(hub))
    here, there = pty.openpty()
    peer = subprocess.Popen(
        [sys.executable, "-m", "shoal.client.cli.main", "peer", "--join", invite],
        stdin=there, stdout=there, stderr=there, env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"},
    )  # fmt: skip
    os.close(there)
    try:
        fetched_until_silence(hub, cache)
        announced = processes.run("status", "--join", invite, "--json")
        assert [found["state"] for found in json.loads(announced.stdout)["peers"]] == ["joining"]
        assert leaves(peer, signal.SIGINT) == 0
    finally:
        peer.kill()
        peer.wait()
        screen = b"".join(iter(lambda: _read(here), b""))
        os.close(here)
    assert json.loads(processes.run("status", "--join", invite, "--json").stdout)["peers"] == []
    assert half_fetched(cache) == [SENT]
    assert 0 < screen.rfind(HIDE_CURSOR) < screen.rfind(SHOW_CURSOR)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so when the last holder of the other end is gone
        return b""


def test_a_peer_that_fetches_the_blocks_it_is_to_move_to(
    hub: Hub, cache: Path, processes: Processes, invite: str
) -> None:
    silent(hub)
    peer = ["peer", "--join", invite, "--json", "--kv-tokens", "256"]
    fixed = [processes.start(*peer, "--blocks", span) for span in ("0:3", "3:6")]
    for each in fixed:
        each.event("event", "online")
    free = processes.start(*peer, "--num-blocks", "3", "--rebalance-s", "0.5")
    start = free.event("event", "online")["blocks"][0]
    shutil.rmtree(cache)
    silent(hub, *shards(hub))
    served = fixed[start < 3].process  # its place will be free
    served.send_signal(signal.SIGTERM)
    assert served.wait(30) == 0
    fetched_until_silence(hub, cache)
    assert leaves(free.process, signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("command", "sign"), [(["peer", "--kv-tokens", "64"], "blocks fit"), (["api", "--port", "0"], "joining the swarm")]
)
def test_a_command_whose_bootstrap_node_says_nothing(
    folder: Path, processes: Processes, command: list[str], sign: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nowhere = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{Identity.generate().peer_id}"
        token = Invite("s", str(folder), (nowhere,)).encode()
        running = processes.start(*command, "--join", token)
        connection, _ = silent.accept()
        with connection:
            assert any(sign in line for line in running.errors)
            assert leaves(running.process, signal.SIGINT) == 0, running.errors


async def test_a_peer_that_measures_its_speed(folder: Path, invite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    computing, enough = threading.Event(), threading.Event()

    def forward(*_: object) -> list[Output]:
        computing.set()
        enough.wait(20)
        return []

    monkeypatch.setattr(DeviceEngine, "_forward", forward)
    peer = asyncio.create_task(serve(PeerConfig(Invite.parse(invite), str(folder), kv_tokens=64)))
    try:
        assert await asyncio.to_thread(computing.wait, 60)
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        assert await peer == 0
        in_time(time.monotonic() - began < AT_ONCE_S)
    finally:
        enough.set()
    assert [thread.name for thread in ending._left[-1:]] == ["shoal-device"]


def test_a_second_signal_waits_for_nothing(
    hub: Hub, cache: Path, processes: Processes, node: Running, invite: str
) -> None:
    """Not for a fetch, nor for a directory that does not answer. Last: what this peer announced stays."""
    silent(hub, *shards(hub))
    peer = processes.start("peer", "--join", invite)
    fetched_until_silence(hub, cache)
    node.process.send_signal(signal.SIGSTOP)
    try:
        peer.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            peer.process.wait(0.5)
        assert leaves(peer.process, signal.SIGTERM) == 130
    finally:
        node.process.send_signal(signal.SIGCONT)
