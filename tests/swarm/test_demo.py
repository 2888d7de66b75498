"""The demo as a newcomer runs it: it works, it ends by itself, and whatever happens to it nothing is left running."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import MARK, Processes
from shoal.client.cli.demo import PROMPT

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


def test_the_script_streams_a_text_then_says_by_which_way_and_how_fast() -> None:
    script, tokens = Path(__file__).resolve().parents[2] / "scripts" / "demo", 24
    with Processes() as processes:
        demo = subprocess.Popen(
            [script, "--max-new-tokens", str(tokens)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, MARK: processes.mark, "OMP_NUM_THREADS": "1", "SHOAL_PYTHON": sys.executable},
        )  # fmt: skip
        pieces = list(iter(lambda: os.read(demo.stdout.fileno(), 65536).decode(), ""))
        errors = demo.communicate(timeout=60)[1].decode()
        assert demo.returncode == 0, errors
        assert processes.left() == {}
    text, _, figures = "".join(pieces).partition("\n\nroute: ")
    assert text.startswith(f"\n{PROMPT}")
    assert len(text) > len(PROMPT) + 20
    assert len(pieces) > tokens / 2  # as they come, though two may come in one
    spans = [tuple(map(int, span)) for span in re.findall(r"> \S+ \[(\d+):(\d+)\]", figures)]
    assert [0, *(stop for _, stop in spans)] == [*(start for start, _ in spans), 12]
    assert re.search(rf"^speed: +\d+\.\d tokens/s \({tokens} tokens\)$", figures, re.MULTILINE)
    assert re.search(r"^time to first token: \d+\.\d\d s$", figures, re.MULTILINE)
    assert errors.count("is online with blocks") == 4


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
