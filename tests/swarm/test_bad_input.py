"""What people get wrong: each is one clear line on stderr, nothing on stdout, and a status that is not zero."""

from __future__ import annotations

import shutil
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest
from processes import Processes
from shoal.blocks.checkpoint import DEMO_PATH, resolve
from shoal.blocks.spec import spec_of
from shoal.dht.identity import Identity
from shoal.dht.invite import Invite

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes() as running:
        yield running


@pytest.fixture(scope="module")
def invite(processes: Processes) -> str:
    """A bootstrap node alone."""
    token: str = processes.start("bootstrap", "--json").event("invite")["invite"]
    return token


def complaint(processes: Processes, *argv: str) -> str:
    """The one line that a command fails with; progress before it is not part of it."""
    done = processes.run(*argv)
    lines = done.stderr.splitlines()
    assert done.returncode in (1, 2), done.stderr
    assert done.stdout == ""
    complaints = [line for line in lines if line.startswith("shoal")]
    assert complaints == lines[-1:], done.stderr
    assert done.returncode == 1 or len(lines) == 1, f"misuse is told in one line: {done.stderr}"
    assert "Traceback" not in done.stderr
    return complaints[0]


@pytest.mark.parametrize("command", [["generate", "x"], ["peer"]], ids=["generate", "peer"])
def test_unknown_model(processes: Processes, invite: str, command: list[str], tmp_path: Path) -> None:
    model = str(tmp_path / "no-such-model")
    assert "no-such-model" in complaint(processes, *command, "--model", model, "--join", invite)


@pytest.mark.parametrize("command", [["generate", "x"], ["peer"], ["status"]], ids=["generate", "peer", "status"])
def test_wrong_invite(processes: Processes, command: list[str]) -> None:
    model = [] if command == ["status"] else ["--model", "demo"]
    assert "invite" in complaint(processes, *command, *model, "--join", "shoal1notaninvite")


@pytest.mark.parametrize("command", [["generate", "x"], ["peer"]], ids=["generate", "peer"])
def test_nobody_of_the_invite_answers(processes: Processes, command: list[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        maddr = f"/ip4/127.0.0.1/tcp/{unused.getsockname()[1]}/p2p/{Identity.generate().peer_id}"
        token = Invite("s", "demo", (maddr,)).encode()
        said = complaint(processes, *command, "--model", "demo", "--join", token)
    assert "answer" in said or "join" in said


def test_no_route_names_the_missing_blocks(processes: Processes, invite: str) -> None:
    said = complaint(processes, "generate", "x", "--model", "demo", "--join", invite)
    assert all(str(block) in said for block in range(12))


def test_no_route_waits_if_asked(processes: Processes, invite: str) -> None:
    began = time.monotonic()
    said = complaint(processes, "generate", "x", "--model", "demo", "--join", invite, "--wait", "8")
    assert "blocks" in said
    assert time.monotonic() - began > 8


@pytest.mark.parametrize(
    "command", [["generate", "x", "--wait", "100"], ["status", "--watch", "--json"]], ids=lambda c: c[0]
)
def test_an_interrupt_ends_a_wait_without_a_word(processes: Processes, invite: str, command: list[str]) -> None:
    running = processes.start(*command, "--model", "demo", "--join", invite)
    if command[0] == "status":
        assert running.event("missing")["missing"] == list(range(12))
    while command[0] == "generate" and not any("waiting for" in line for line in list(running.errors)):
        assert running.process.poll() is None, running.errors
        time.sleep(0.05)
    before = len(running.errors)
    assert running.end(signal.SIGINT) == 130
    assert running.errors[before:] == []


def test_wrong_quantization(processes: Processes, invite: str) -> None:
    said = complaint(processes, "peer", "--model", "demo", "--join", invite, "--quant", "int3")
    assert "int3" in said
    assert "nf4" in said


def test_blocks_that_the_model_has_not(processes: Processes, invite: str) -> None:
    assert "12" in complaint(processes, "peer", "--model", "demo", "--join", invite, "--blocks", "8:40")


@pytest.mark.parametrize("command", ["bootstrap", "peer"])
def test_port_taken(processes: Processes, invite: str, command: str) -> None:
    join = ["--model", "demo", "--join", invite, "--blocks", "0:1"] if command == "peer" else []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert port in complaint(processes, command, *join, "--port", port)


def test_a_prompt_longer_than_the_context(processes: Processes, invite: str) -> None:
    context = spec_of(resolve("demo")).max_position
    ids = ",".join(["7"] * context)
    said = complaint(processes, "generate", "--token-ids", ids, "--model", "demo", "--join", invite)
    assert f"context of {context}" in said


@pytest.mark.parametrize("command", [["generate", "x"], ["peer"]], ids=["generate", "peer"])
def test_a_checkpoint_of_the_wrong_revision(processes: Processes, invite: str, command: list[str]) -> None:
    said = complaint(processes, *command, "--model", "demo", "--join", invite, "--revision", "0123456789abcdef")
    assert "0123456789abcdef" in said


def test_a_swarm_that_serves_another_revision(processes: Processes, invite: str, tmp_path: Path) -> None:
    peer = processes.start(
        "peer", "--model", "demo", "--join", invite, "--blocks", "0:12", "--identity", str(tmp_path / "key"), "--json"
    )
    peer.event("event", "online")
    mine = shutil.copytree(DEMO_PATH, tmp_path / "mine")
    config = mine / "config.json"
    config.write_text(config.read_text() + "\n")
    said = complaint(processes, "generate", "x", "--model", str(mine), "--join", invite)
    assert resolve(str(mine)).revision in said
    assert resolve("demo").revision in said
    assert peer.end() == 0


def test_two_peers_with_one_identity(processes: Processes, invite: str, tmp_path: Path) -> None:
    argv = ["--model", "demo", "--join", invite, "--blocks", "0:2", "--identity", str(tmp_path / "key")]
    first = processes.start("peer", *argv, "--json")
    first.event("event", "online")
    assert "identity" in complaint(processes, "peer", *argv)
    assert first.end() == 0


def test_an_identity_file_that_is_none(processes: Processes, invite: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("not a key")
    assert str(file) in complaint(processes, "peer", "--model", "demo", "--join", invite, "--identity", str(file))
    assert file.read_text() == "not a key"
