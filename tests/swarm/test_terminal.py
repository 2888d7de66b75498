"""Commands at a terminal and behind pipes, as people and scripts use them, with a real swarm behind."""

from __future__ import annotations

import json
import signal
import time

import pytest
from processes import MARK, Processes
from pseudo_terminal import SHOW_CURSOR, Terminal
from python_swarm import start_swarm

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(240)]
LONG = 400


@pytest.fixture(scope="module")
def processes():
    with Processes() as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory, processes):
    """The environment of a user who keeps the swarm under the name `home`."""
    folder = tmp_path_factory.mktemp("home")
    environment = {"XDG_CONFIG_HOME": str(folder), "XDG_STATE_HOME": str(folder), MARK: processes.mark}
    invite = start_swarm(processes, folder, spans=("0:6", "6:12"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        assert processes.run("swarms", "add", "home", invite).returncode == 0
        yield environment


def sessions(processes: Processes) -> int:
    """How many sessions the peers say they hold."""
    said = json.loads(processes.run("status", "--join", "home", "--json").stdout)
    return sum(peer["queue"] for peer in said["peers"])


def until_no_session(processes: Processes) -> None:
    end = time.monotonic() + 60.0
    while sessions(processes):
        assert time.monotonic() < end
        time.sleep(0.5)


def test_a_conversation_at_a_terminal(home, processes) -> None:
    with Terminal(["chat", "--join", "home", "--max-new-tokens", str(LONG)], home) as terminal:
        assert "served by 2 peers" in terminal.until(">>> ")
        terminal.enter("/set max-new-tokens 12")
        terminal.enter("class Config(dict):")
        assert "12 tokens" in terminal.until("first after")
        terminal.enter('"""')
        terminal.until("... ")
        terminal.enter('def f(x):"""')
        terminal.until("via 2 peers")
        terminal.enter(f"/save {home['XDG_STATE_HOME']}/talk.json")
        terminal.until("kept in")

        terminal.enter(f"/set max-new-tokens {LONG}")
        terminal.enter("import os")
        terminal.until_again(SHOW_CURSOR)  # the first token is there
        terminal.interrupt()
        assert f" {LONG} tokens" not in terminal.until("stopped")
        terminal.until(">>> ")
        terminal.type("\x1b[A")  # Up: what was typed last
        terminal.until("import os")
        terminal.type("\x15")
        terminal.enter("/undo")
        terminal.until("taken back: import os")
        terminal.enter("/nonsense")
        terminal.until("/help lists them")
        terminal.until(">>> ")

        terminal.interrupt()
        terminal.until("leaves)")
        terminal.interrupt()
        assert terminal.ended() == 0
    until_no_session(processes)

    with Terminal(["chat", "--join", "home", "--load", f"{home['XDG_STATE_HOME']}/talk.json"], home) as terminal:
        terminal.until(">>> ")
        terminal.type("\x1b[A\x1b[A\x1b[A")  # behind /nonsense and /undo; lines of one message are one entry
        terminal.until("import os")
        terminal.type("\x15")
        terminal.enter("/undo")
        terminal.until("taken back: def f(x):")
        terminal.enter("/quit")
        assert terminal.ended() == 0


def test_a_pipe_is_a_script(home, processes) -> None:
    long = "names = [" + ", ".join(f'"name {n}"' for n in range(30)) + "]"
    turns = f"class Config(dict):\n/set max-new-tokens 7\n{long}\nimport os\n"
    done = processes.run("chat", "--join", "home", "--max-new-tokens", "5", "--json", stdin=turns)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["tokens"] for answer in answers] == [5, 7, 7]
    assert all(answer["route"] for answer in answers)
    assert answers[2]["cached_tokens"] >= 64  # of what the second turn had them read

    plain = processes.run("chat", "--join", "home", "--max-new-tokens", "5", stdin="class Config(dict):\n")
    assert plain.stdout == answers[0]["text"] + "\n"
    assert "via 2 peers" in plain.stderr

    wrong = processes.run("chat", "--join", "home", stdin="/set temperature hot\nclass Config(dict):\n")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.splitlines()[-1] == "shoal: temperature must be a number, not 'hot'"


def test_a_plan_for_a_swarm(home, processes) -> None:
    done = processes.run("plan", "--join", "home", "--quant", "nf4", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["runs_in_swarm"] is True
    assert [hop["blocks"] for hop in found["swarm"]["route"]] == [[0, 6], [6, 12]]
    assert found["swarm"]["missing"] == []
    assert found["swarm"]["tokens_per_s"] > 0
    assert found["with_this_machine"][0]["token_after_s"] > 0
    assert any("round trips to 2 of the peers" in line for line in found["measured"])


def test_watching_a_swarm_at_a_terminal(home, processes) -> None:
    with Terminal(["status", "--join", "home", "--watch"], home) as terminal:
        terminal.until("by one peer only")
        again = terminal.until("by one peer only")
        assert "holders" in again
        assert "\x1b[1A" in terminal.screen  # drawn over the picture before, not below it
        terminal.interrupt()
        assert terminal.ended() == 130
        assert SHOW_CURSOR in terminal.screen[-200:]


@pytest.mark.parametrize(
    ("argv", "ready"),
    [
        (["peer", "--join", "home", "--blocks", "0:1", "--dtype", "float32"], "online"),
        (["api", "--join", "home", "--port", "0"], "Ctrl-C"),
        (["bootstrap", "--host", "127.0.0.1"], "/p2p/"),
    ],
    ids=["peer", "api", "bootstrap"],
)
def test_who_serves_leaves_tidily_when_the_terminal_is_closed(home, processes, argv, ready) -> None:
    with Terminal(argv, home) as terminal:
        terminal.until(ready)
        held = len(json.loads(processes.run("status", "--join", "home", "--json").stdout)["peers"])
        terminal.close()
        terminal.tell(signal.SIGHUP)  # the shell passes on what it hears
        assert terminal.process.wait(30) == 0
    left = len(json.loads(processes.run("status", "--join", "home", "--json").stdout)["peers"])
    assert held - left == (argv[0] == "peer")  # withdrawn, and not left to expire
