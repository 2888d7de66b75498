"""`shoal doctor` on a machine and in swarms that are well, and in some that are not."""

from __future__ import annotations

import json
import socket

import pytest
from processes import Processes
from shoal.client.cli.main import main

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(120)]

HERE = ["--host", "127.0.0.1", "--device", "cpu"]


@pytest.fixture(scope="module")
def processes():
    with Processes() as running:
        yield running


@pytest.fixture(scope="module")
def bootstrap(processes):
    return processes.start("bootstrap", "--json")


@pytest.fixture(scope="module")
def invite(bootstrap):
    return bootstrap.event("invite")["invite"]


@pytest.fixture
def examine(capsys, monkeypatch):
    """Run it in this process; the exit status and the findings by name."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def run(*argv):
        status = main(["doctor", *HERE, *argv, "--json"])
        told = json.loads(capsys.readouterr().out)
        assert told["ok"] == (status == 0)
        assert all(check["advice"] for check in told["checks"] if check["state"] == "broken")
        return status, {check["name"]: check for check in told["checks"]}

    return run


def test_this_machine_is_well_and_a_port_may_be_taken(examine):
    status, found = examine()
    assert status == 0
    assert set(found) == {"python", "torch", "device", "memory", "daemon", "port"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, found = examine("--port", str(taken.getsockname()[1]))
    assert (status, found["port"]["state"]) == (1, "broken")


def test_a_device_that_is_not_there_and_a_damaged_invite(examine):
    status, found = examine("--device", "cuda:99", "--join", "shoal1damaged")
    assert status == 1
    assert found["device"]["state"] == found["invite"]["state"] == "broken"
    assert "bootstrap" not in found


def test_a_swarm_without_peers_then_with_one_then_gone(examine, processes, bootstrap, invite, monkeypatch):
    status, found = examine("--join", invite)
    assert status == 1
    assert found["coverage"]["state"] == "broken"
    assert "0-11" in found["coverage"]["text"]
    assert found["reach"]["text"].startswith("direct")
    assert found["clock"]["state"] == found["bootstrap"]["state"] == "ok"

    peer = processes.start("peer", "--join", invite, "--blocks", "0:12", "--json")
    peer.event("event", "online")
    status, found = examine("--join", invite)
    assert status == 0
    assert found["peers"]["state"] == "ok"
    assert "1 of 1 peers (1 direct)" in found["peers"]["text"]

    monkeypatch.setattr("shoal.peer.link.VERSION", 255)
    status, found = examine("--join", invite)
    assert (status, found["peers"]["state"]) == (1, "broken")

    peer.end()
    bootstrap.end()
    status, found = examine("--join", invite)
    assert status == 1
    assert found["bootstrap"]["state"] == "broken"
    assert "0 of 1" in found["bootstrap"]["text"]
    assert "coverage" not in found


def test_people_read_what_to_do(capsys):
    assert main(["doctor", *HERE, "--device", "tpu"]) == 1
    said = capsys.readouterr().out
    assert "BROKEN  device" in said
    assert "choose another --device" in said
