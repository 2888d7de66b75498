"""What people get wrong: each is one clear line on stderr, nothing on stdout, and a status that is not zero."""

from __future__ import annotations

import logging
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from processes import Processes
from shoal.blocks.checkpoint import DEMO_PATH, resolve
from shoal.blocks.choices import QUANTIZATIONS
from shoal.blocks.spec import spec_of
from shoal.client.cli.main import main
from shoal.dht.identity import Identity
from shoal.dht.invite import Invite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes() as running:
        yield running


@pytest.fixture(scope="module")
def bootstrap(processes: Processes) -> str:
    """The invite to a swarm that one peer serves."""
    token: str = processes.start("bootstrap", "--json").event("invite")["invite"]
    return token


@pytest.fixture(scope="module")
def invite(bootstrap: str) -> str:
    """A swarm of another name on the same bootstrap node: nobody serves it."""
    return replace(Invite.parse(bootstrap), swarm="empty").encode()


@pytest.fixture(scope="module")
def key(processes: Processes, bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The identity of a peer that serves the whole demo model."""
    file = tmp_path_factory.mktemp("keys") / "key"
    argv = ["--model", "demo", "--join", bootstrap, "--blocks", "0:12", "--identity", str(file), "--json"]
    processes.start("peer", *argv).event("event", "online")
    return file


def complaint(processes: Processes, *argv: str) -> str:
    """The one line that a command, run as a process, fails with; progress before it is not part of it."""
    done = processes.run(*argv)
    return only_line(done.returncode, done.stdout, done.stderr)


def only_line(status: int, out: str, err: str) -> str:
    lines = err.splitlines()
    assert status in (1, 2), err
    assert out == ""
    complaints = [line for line in lines if line.startswith("shoal")]
    assert complaints == lines[-1:], err
    assert status == 1 or len(lines) == 1, f"misuse is told in one line: {err}"
    assert "Traceback" not in err
    return complaints[0]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """The same for what is refused before anything is started: in this process, so that torch is loaded once."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logger = logging.getLogger("shoal")
    level = logger.level

    def run(*argv: str) -> str:
        try:
            status = main(list(argv))
        except SystemExit as ended:
            status = ended.code
        said = capsys.readouterr()
        return only_line(status, said.out, said.err)

    yield run
    logger.setLevel(level)


NOWHERE = Invite("s", "demo", (f"/ip4/127.0.0.1/tcp/9/p2p/{Identity.generate().peer_id}",)).encode()
BOTH = pytest.mark.parametrize("command", [["generate", "x"], ["peer"]], ids=["generate", "peer"])


@BOTH
def test_unknown_model(refused: Callable[..., str], command: list[str], tmp_path: Path) -> None:
    model = str(tmp_path / "no-such-model")
    assert "no-such-model" in refused(*command, "--model", model, "--join", NOWHERE)


def test_unknown_model_as_a_process(processes: Processes, tmp_path: Path) -> None:
    model = str(tmp_path / "no-such-model")
    assert "no-such-model" in complaint(processes, "peer", "--model", model, "--join", NOWHERE)


@pytest.mark.parametrize("option", [[], ["--dry-run"]], ids=["serve", "dry-run"])
def test_another_model_than_the_invite_s(refused: Callable[..., str], option: list[str]) -> None:
    said = refused("peer", "--model", "ORG/NAME", "--join", NOWHERE, *option)
    assert "this invite is for demo" in said
    assert "leave --model out" in said


@pytest.mark.parametrize("command", [["generate", "x"], ["peer"], ["status"]], ids=["generate", "peer", "status"])
def test_wrong_invite(refused: Callable[..., str], command: list[str]) -> None:
    model = [] if command == ["status"] else ["--model", "demo"]
    assert "invite" in refused(*command, *model, "--join", "shoal1notaninvite")


def test_wrong_quantization(refused: Callable[..., str]) -> None:
    said = refused("peer", "--model", "demo", "--join", NOWHERE, "--quant", "int3")
    assert "int3" in said
    assert all(kind in said for kind in QUANTIZATIONS)


def test_blocks_that_the_model_has_not(refused: Callable[..., str]) -> None:
    assert "0:12" in refused("peer", "--model", "demo", "--join", NOWHERE, "--blocks", "8:40")


def test_too_little_memory_for_one_block(refused: Callable[..., str]) -> None:
    said = refused("peer", "--model", "demo", "--join", NOWHERE, "--vram", "64MiB")
    assert "too little memory for one block: 2.7 MiB for weights, 0.5 MiB for 1024 tokens of KV" in said
    assert "64.0 MiB may be used" in said


def test_too_little_memory_for_the_blocks_that_were_asked_for(refused: Callable[..., str]) -> None:
    argv = ["--blocks", "2:9", "--kv-tokens", "1000000000"]
    assert "too little memory for blocks 2:9" in refused("peer", "--model", "demo", "--join", NOWHERE, *argv)


@pytest.mark.parametrize("device", ["tpu", "xla", "cuda:99", "mps" if sys.platform != "darwin" else "cuda"])
def test_a_device_that_is_not_there(refused: Callable[..., str], device: str) -> None:
    assert device in refused("peer", "--model", "demo", "--join", NOWHERE, "--device", device)


def test_offload_without_a_gpu(refused: Callable[..., str]) -> None:
    assert "--offload is for GPUs" in refused("peer", "--model", "demo", "--join", NOWHERE, "--offload")


def test_a_prompt_longer_than_the_context(refused: Callable[..., str]) -> None:
    context = spec_of(resolve("demo")).max_position
    ids = ",".join(["7"] * context)
    said = refused("generate", "--token-ids", ids, "--model", "demo", "--join", NOWHERE)
    assert f"context of {context}" in said


@BOTH
def test_a_checkpoint_of_the_wrong_revision(refused: Callable[..., str], command: list[str]) -> None:
    said = refused(*command, "--model", "demo", "--join", NOWHERE, "--revision", "0123456789abcdef")
    assert "0123456789abcdef" in said


def test_an_identity_file_that_is_none(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("not a key")
    assert str(file) in refused("peer", "--model", "demo", "--join", NOWHERE, "--identity", str(file))
    assert file.read_text() == "not a key"


def test_no_space_for_the_identity(bootstrap: str, tmp_path: Path) -> None:
    """The kernel refuses to write any file past 16 bytes, as a full disk would: no piece of a key stays."""
    file = tmp_path / "keys" / "key"
    file.parent.mkdir()
    code = (
        "import resource, signal, sys; from shoal.client.cli.main import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16));"
        "sys.exit(main(sys.argv[1:]))"
    )
    argv = ["peer", "--model", "demo", "--join", bootstrap, "--blocks", "0:1", "--identity", str(file)]
    done = subprocess.run([sys.executable, "-B", "-c", code, *argv], capture_output=True, text=True, check=False)
    assert str(file.parent) in only_line(done.returncode, done.stdout, done.stderr)
    assert list(file.parent.iterdir()) == []


@BOTH
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
    said = complaint(processes, "generate", "x", "--model", "demo", "--join", invite, "--wait", "3")
    assert "blocks" in said
    assert time.monotonic() - began > 3


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


@pytest.mark.parametrize("command", ["bootstrap", "peer"])
def test_port_taken(processes: Processes, invite: str, command: str) -> None:
    join = ["--model", "demo", "--join", invite, "--blocks", "0:1"] if command == "peer" else []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert port in complaint(processes, command, *join, "--port", port)


def test_a_swarm_that_serves_another_revision(processes: Processes, bootstrap: str, key: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(DEMO_PATH, tmp_path / "mine")
    config = mine / "config.json"
    config.write_text(config.read_text() + "\n")
    said = complaint(processes, "generate", "x", "--model", str(mine), "--join", bootstrap)
    assert resolve(str(mine)).revision in said
    assert resolve("demo").revision in said
    peer = processes.start("peer", "--model", str(mine), "--join", bootstrap, "--blocks", "0:1", "--json", "--quiet")
    peer.event("event", "online")
    theirs, ours = resolve("demo").revision, resolve(str(mine)).revision
    warned = f"1 peer of this swarm serves revision {theirs}, this one alone {ours}"
    end = time.monotonic() + 20
    while not any(warned in line and "without --model" in line for line in list(peer.errors)):
        assert time.monotonic() < end, peer.errors
        time.sleep(0.05)


def test_two_peers_with_one_identity(processes: Processes, bootstrap: str, key: Path) -> None:
    argv = ["--model", "demo", "--join", bootstrap, "--blocks", "0:2", "--identity", str(key)]
    assert "identity" in complaint(processes, "peer", *argv)
