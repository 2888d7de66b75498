"""The demo as a newcomer runs it: it works, it ends by itself, and whatever happens to it nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from processes import Processes

pytestmark = [pytest.mark.swarm, pytest.mark.executed, pytest.mark.calm, pytest.mark.timeout(180)]


def test_demo_json_and_nothing_left() -> None:
    with Processes() as processes:
        done = processes.run("demo", "--json", "--max-new-tokens", "24", timeout_s=170)
        assert done.returncode == 0, done.stderr
        assert processes.left() == {}
    out = json.loads(done.stdout)
    assert {"text", "tokens", "route", "tokens_per_s", "ttft_s", "peers"} <= set(out)
    assert out["tokens"] == len(out["token_ids"]) == 24
    assert len(out["text"]) > 10
    assert out["tokens_per_s"] > 0
    assert out["ttft_s"] > 0
    spans = {peer["peer"]: peer["blocks"] for peer in out["peers"]}
    assert len(spans) == 4
    assert {peer["quantization"] for peer in out["peers"]} == {"none", "int8", "nf4"}
    at = 0
    for hop in out["route"]:
        start, stop = hop["blocks"]
        assert start == at < stop
        assert spans[hop["peer"]][0] <= start < stop <= spans[hop["peer"]][1]
        at = stop
    assert at == 12
    assert "is online with blocks" in done.stderr


@pytest.mark.parametrize(
    ("number", "status", "sign"),
    [
        (signal.SIGKILL, -9, "is online"),  # with peers at work
        (signal.SIGINT, 130, "starting 4 peers"),  # while they start
        (signal.SIGTERM, 143, "starting 4 peers"),
    ],
    ids=lambda value: str(value),
)
def test_a_demo_that_is_stopped_leaves_nothing(number: signal.Signals, status: int, sign: str) -> None:
    with Processes() as processes:
        demo = processes.start("demo", "--json", "--max-new-tokens", "100000")
        while not any(sign in line for line in list(demo.errors)):
            assert demo.process.poll() is None, demo.errors
            time.sleep(0.05)
        assert len(processes.left()) >= 3  # the demo, the bootstrap node and its daemon, and more
        demo.process.send_signal(number)
        assert demo.process.wait(30) == status, demo.errors
        assert processes.left(patience_s=20) == {}


def test_a_peer_that_cannot_start_ends_the_demo_in_one_line() -> None:
    with Processes() as processes:
        demo = processes.start("demo", "--json")
        while not (peers := [pid for pid, line in processes.left().items() if " peer " in line]):
            assert demo.process.poll() is None, demo.errors
            time.sleep(0.05)
        os.kill(peers[0], signal.SIGKILL)
        assert demo.process.wait(60) == 1
        assert [line for line in demo.errors if line.startswith("shoal: peer ")] == demo.errors[-1:]
        assert "ended too early" in demo.errors[-1]
        assert processes.left() == {}
