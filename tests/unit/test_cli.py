"""The command line's frame: which command runs, what an error looks like, what is shown. No swarm is needed."""

from __future__ import annotations

import argparse
import errno
import importlib.metadata
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from shoal.blocks.errors import UnknownModel
from shoal.client.cli.arguments import token_ids
from shoal.client.cli.board import as_json, board, console
from shoal.client.cli.commands import Command, closest, find_commands
from shoal.client.cli.complaint import CommandError, complaint
from shoal.client.cli.main import main, run
from shoal.client.cli.status import view_of
from shoal.client.cli.terminal import route_json, route_line, spans
from shoal.dht import arguments as kinds
from shoal.dht.errors import HostError
from shoal.dht.identity import Identity
from shoal.dht.invite import Invite
from shoal.dht.record import Record
from shoal.dht.version import UNKNOWN, shoal_version
from shoal.peer.errors import NoRouteError
from shoal.routing.announcement import Announcement, encode
from shoal.routing.route import Hop
from shoal.routing.view import View, fold

ROOT = Path(__file__).resolve().parents[2]


def shoal(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shoal.client.cli.main", *argv],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


# -- commands ---------------------------------------------------------------------------------------------------------


def test_help_lists_every_command_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "`shoal --version`" in shown
    commands = find_commands()
    assert {"bootstrap", "invite", "peer", "generate", "status", "demo"} <= set(commands)
    for command in commands.values():
        assert f"  {command.name}" in shown
        assert len(command.summary) > 10, command.name
        assert command.summary in shown
        assert "not installed" not in command.summary


def test_every_command_can_be_loaded_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in find_commands().values():
        with pytest.raises(SystemExit) as ended:
            command.load()(["--help"])
        assert ended.value.code == 0
        assert "usage" in capsys.readouterr().out.lower()


def test_a_checkout_that_is_not_installed_has_the_same_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = find_commands()
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [])
    assert find_commands() == installed


def test_no_command_shows_help() -> None:
    assert shoal().stdout == shoal("--help").stdout != ""


@pytest.mark.parametrize("argv", [["completion", "bash"], ["swarms", "list"], ["chat", "--help"]])
def test_what_must_answer_at_once_imports_nothing_heavy(argv: list[str], tmp_path: Path) -> None:
    code = "import atexit, sys; heavy = {'torch', 'numpy', 'transformers', 'hivemind.p2p', 'rich'}; "
    code += "atexit.register(lambda: sys.stderr.write(repr(heavy & set(sys.modules)))); "
    code += f"from shoal.client.cli.main import main; sys.exit(main({argv!r}))"
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--temperature", "-1", "temperature is -1.0, but must be a number from 0 (greedy) up"),
        ("--temperature", "hot", "'hot' is not a number"), ("--top-k", "1.5", "'1.5' is not a whole number"),
        ("--top-p", "0", "must be over 0"), ("--min-p", "nan", "min-p is nan"),
        ("--seed", "-3", "must be a whole number"),
        ("--repetition-penalty", "inf", "must be over 0"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", [["generate", "x"], ["chat"]], ids=["generate", "chat"])
def test_a_way_to_choose_that_is_none_is_a_wrong_option(
    command: list[str], option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, option, value, "--join", "nonsense"])
    assert ended.value.code == 2
    line = one_line(capsys.readouterr().err)
    assert line.startswith(f"shoal {command[0]}: argument {option}: ")
    assert said in line


def test_version() -> None:
    assert shoal("--version").stdout.split()[0] == "shoal"
    assert shoal_version() != UNKNOWN


def test_a_checkout_that_is_not_installed_has_no_known_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("shoal.dht.version.version", missing)
    assert shoal_version() == UNKNOWN


def test_a_user_without_a_home_folder_gets_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a container that runs as a user whom its system does not know."""

    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setenv("HOME", "")  # restored at the end
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert main(["status", "--join", "nonsense"]) == 1
    assert "'nonsense' is not an invite" in capsys.readouterr().err
    assert Path.home() == Path("/")


def test_a_mistyped_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["genrate"]) == 2
    assert "did you mean `shoal generate`?" in one_line(capsys.readouterr().err)
    assert main(["xyzzy"]) == 2
    assert "--help" in one_line(capsys.readouterr().err)
    assert closest("stat", {"status": Command("status", "a:b")}) == "status"
    assert main(["nope"]) == 2
    assert "did you mean" not in one_line(capsys.readouterr().err)


# -- errors -----------------------------------------------------------------------------------------------------------


def one_line(text: str) -> str:
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


def failing(error: BaseException) -> int:
    def command(_: list[str]) -> int:
        raise error

    return run(lambda: command, [])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UnknownModel("There is no model 'x'."), "There is no model 'x'."),
        (HostError("Port 5 is taken;\n  choose another."), "Port 5 is taken; choose another."),
        (NoRouteError("no peer serves blocks 3, 4", (3, 4)), "blocks 3, 4"),
        (CommandError("peer 1 ended too early"), "peer 1 ended too early"),
        (ExceptionGroup("tasks", [ExceptionGroup("inner", [HostError("no daemon")])]), "no daemon"),
        (OSError(errno.ENOSPC, "No space left on device", "/models/x"), "/models/x: the disk is full"),
        (OSError(errno.EADDRINUSE, "Address already in use"), "--port"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "key"), "key: No such file"),
    ],
)
def test_expected_errors_are_one_line(error: Exception, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(error) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert one_line(said.err).startswith("shoal: ")
    assert words in said.err


@pytest.mark.parametrize("bug", [KeyError("oops"), ExceptionGroup("tasks", [HostError("x"), ValueError("oops")])])
def test_a_bug_is_not_hidden(bug: Exception) -> None:
    assert complaint(bug) is None
    with pytest.raises(type(bug)):
        failing(bug)


def test_debugging_shows_where_an_error_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_DEBUG", "1")
    with pytest.raises(HostError):
        failing(HostError("no daemon"))


def test_an_interrupt_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m shoal.client.cli.main --help"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -c 5; {command} > /dev/full"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "usage"
    assert one_line(done.stderr) == "shoal: the disk is full; free some space and run this again"
    assert done.returncode == 1


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["generate", "x"], "--join"),
        (["generate", "--join", "shoal1x"], "a prompt, or --token-ids"),
        (["generate", "x", "--token-ids", "1", "--join", "shoal1x"], "not both"),
        (["generate", "x", "--join", "shoal1x", "--max-new-tokens", "0"], "from 1 up"),
        (["generate", "--token-ids", "1,b", "--join", "shoal1x"], "1,2,3"),
        (["generate", "x", "--join", "shoal1x", "--dtype", "int3"], "float32"),
        (["generate", "x", "--join", "shoal1x", "--wait", "nan"], "number of seconds"),
        (["demo", "--device", "tpu"], "cuda"),
        (["status"], "--join"),
        (["peer"], "--join"),
        (["peer", "--join", "shoal1x", "--quant", "int3"], "none, int8, nf4, fp4"),
        (["peer", "--join", "shoal1x", "--blocks", "5:5"], "A:B"),
        (["peer", "--join", "shoal1x", "--direct-port", "abc"], "or none for no direct streams"),
        (["peer", "--join", "shoal1x", "--kv-tokens", "3"], "from 16 up"),
        (["peer", "--join", "shoal1x", "--kv-dtype", "int4"], "auto, int8"),
        (["peer", "--join", "shoal1x", "--vram", "10GiBs"], "10GiB, 512MiB or 8GB"),
        (["peer", "--join", "shoal1x", "--host-memory", "0"], "10GiB, 512MiB or 8GB"),
        (["peer", "--join", "shoal1x", "--max-batch", "1"], "from 2 up"),
        (["peer", "--join", "shoal1x", "--port", "65536"], "1 to 65535"),
        (["peer", "--join", "shoal1x", "--blocks", "²:5"], "write A:B"),
        (["peer", "--join", "shoal1x", "--announce", "foo"], "/ip4/192.0.2.7/tcp/4001"),
        (
            ["peer", "--join", "shoal1x", "--announce", "/ip4/192.0.2.7/tcp/4001", "/ip4/1.2.3/tcp/1"],
            "/ip4/1.2.3/tcp/1",
        ),
        (["peer", "--join", "shoal1x", "--host", "1.2.3.4.5"], "listen on one of this machines"),
        (["peer", "--join", "shoal1x", "--identity", ""], "an empty name is no file"),
        (["bootstrap", "--identity", ""], "an empty name is no file"),
        (["chat", "--join", "shoal1x", "--load", ""], "an empty name is no file"),
        (["api", "--join", "shoal1x", "--api-keys-file", ""], "an empty name is no file"),
        (["invite", "--model", "no such/ model", "--peers", "x"], "neither a hub name nor a directory"),
        (["bootstrap", "--colour"], "--colour"),
        (["invite", "--model", "demo"], "--peers"),
    ],
)
def test_misuse_is_one_line_and_status_2(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    said = one_line(capsys.readouterr().err)
    assert words in said.replace("'", "")  # Python 3.11 quotes choices


@pytest.mark.parametrize(
    "argv",
    [
        ["peer", "--vram"],
        ["peer", "--host-memory"],
        ["plan", "--vram"],
        ["api", "--max-body"],
        ["peer", "--port"],
        ["peer", "--blocks"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("digits", [400, 5000])
def test_a_number_beyond_measure_is_misuse_and_not_echoed(
    argv: list[str], digits: int, capsys: pytest.CaptureFixture[str]
) -> None:
    value = f"{'9' * digits}:{'9' * digits}9" if "--blocks" in argv else "9" * digits
    with pytest.raises(SystemExit) as ended:
        main([*argv, value, "--join", "shoal1x"])
    assert ended.value.code == 2
    said = one_line(capsys.readouterr().err)
    assert len(said) < 250
    assert "999" in said


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "http://]x["])
def test_an_origin_that_cannot_be_taken_apart_is_no_origin(origin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["api", "--join", "home", "--port", "0", "--allow-origin", origin]) == 1
    assert "write it as https://example.org" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("option", ["--model", "--swarm"])
def test_a_name_that_is_not_text_is_told_before_anything_starts(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def started(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("asyncio.run", started)
    assert main(["bootstrap", option, os.fsdecode(b"\xff\xfe"), "--private"]) == 1
    assert "printable text" in one_line(capsys.readouterr().err)


def test_a_folder_may_have_spaces_in_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a model"
    folder.mkdir()
    peer = f"/ip4/127.0.0.1/tcp/9/p2p/{Identity.generate().peer_id}"
    assert main(["invite", "--model", str(folder), "--peers", peer]) == 0
    assert Invite.parse(capsys.readouterr().out).model == str(folder)


@pytest.mark.parametrize("command", ["generate", "status", "peer"])
@pytest.mark.parametrize("token", ["nonsense", "shoal1AAAA", ""])
def test_a_wrong_invite_is_one_line(command: str, token: str, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = ["x"] if command == "generate" else []
    assert main([command, *prompt, "--join", token]) == 1
    assert "invite" in one_line(capsys.readouterr().err)


def test_kinds_of_values() -> None:
    assert token_ids("1,22,3") == (1, 22, 3)
    assert kinds.whole(0)("0") == 0
    assert kinds.seconds("2.5") == 2.5
    assert kinds.port("0") == 0
    assert kinds.port("65535") == 65535
    assert [kinds.size(text) for text in ("7", "1000B", "2KB", "512MiB", "1.5 gib")] == [
        7,
        1000,
        2000,
        2**29,
        3 * 2**29,
    ]
    bad_ports = [(kinds.port, text) for text in ("-1", "65536", "http", "")]
    bad_sizes = [
        (kinds.size, text) for text in ("", "GiB", "-1GiB", "1.2.3GB", "nan", "1e9GB", "0", "9999999TiB", "4 G")
    ]
    for kind, text in (
        *bad_ports,
        *bad_sizes,
        (kinds.whole(0), "-1"),
        (kinds.whole(0), "1.5"),
        (kinds.seconds, "inf"),
        (kinds.seconds, "-1"),
    ):
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)


def test_status_says_that_it_joins(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("shoal.client.cli.status.run_async", lambda work: work.close())
    peer = f"/ip4/127.0.0.1/tcp/9/p2p/{Identity.generate().peer_id}"
    assert main(["status", "--join", Invite("s", "org/model", (peer,)).encode()]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "joining the swarm\n")


# -- what is shown ----------------------------------------------------------------------------------------------------


def announcement(start: int, stop: int, name: str = "", revision: str = "r1") -> Announcement:
    return Announcement(
        peer_id=Identity.generate().peer_id, sequence=1, expiry=100.0, start=start, stop=stop, state="online",
        quantization="nf4", dtype="bfloat16", decode_s=0.002, prefill_s=0.0001, queue=3, free_tokens=4096,
        max_chunk=512, addrs=(), rtts=(), version="0.1.0", name=name, revision=revision, reach="relayed",
    )  # fmt: skip


def record(peer: Announcement) -> Record:
    return Record(b"n" * 32, "m", peer.revision, peer.peer_id, peer.sequence, peer.expiry, encode(peer))


def shown(view: View, capsys: pytest.CaptureFixture[str]) -> str:
    console().print(board("swarm: model", view))
    return capsys.readouterr().out


def test_status_shows_holders_speeds_and_gaps(capsys: pytest.CaptureFixture[str]) -> None:
    low, high = announcement(0, 4, "[red]:fish:"), announcement(2, 6)
    text = shown(fold(View(20), [low, high], 60.0), capsys)
    assert "\x1b" not in text
    row = next(line for line in text.splitlines() if low.peer_id[-6:] in line)
    expected = "[red]:fish: online relayed 0:4 nf4 8.0 2500 3 4096 40 s"
    assert row.split()[1:] == expected.split()
    lines = text.splitlines()
    counts = [line.split()[1:] for line in lines if line.startswith("holders")]
    assert counts == [["1", "1", "2", "2", "1", "1", *["0"] * 10], ["0"] * 4]
    assert "Nobody serves blocks 6-19" in text


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_status_fits_the_terminal_and_cuts_nothing_that_matters(width: int) -> None:
    peers = [announcement(0, 20, "a name that is much too long for a table"), announcement(10, 32, "b")]
    screen = Console(file=io.StringIO(), width=width, force_terminal=False, markup=False, highlight=False)
    screen.print(board("swarm: model", fold(View(32), peers, 60.0)))
    lines = screen.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert {"online", "0:20", "40.0"} <= set(lines[3].split())
    heading = lines[2].split()
    assert {"peer", "blocks", "ms/token", "state"} <= set(heading)
    assert ("expires" in heading) == (width == 120)
    assert sum(len(line.split()) - 1 for line in lines if line.startswith("holders")) == 32


def test_status_says_where_one_loss_would_break_it(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = announcement(0, 4), announcement(2, 4)
    assert "blocks 0-1 by one peer only" in shown(fold(View(4), [one, two], 60.0), capsys)
    assert "by two peers or more" in shown(fold(View(4), [one, announcement(0, 4)], 60.0), capsys)
    assert "Nobody serves" in shown(View(4), capsys)


def test_status_json_lists_the_holders_of_each_block() -> None:
    low, high = announcement(0, 2), announcement(1, 3)
    out = json.loads(json.dumps(as_json(fold(View(4), [low, high], 60.0))))
    assert out["missing"] == [3]
    assert [sorted(holders) for holders in out["blocks"]] == [
        [low.peer_id], sorted([low.peer_id, high.peer_id]), [high.peer_id], [],
    ]  # fmt: skip
    assert {peer["peer"]: peer["blocks"] for peer in out["peers"]} == {low.peer_id: [0, 2], high.peer_id: [1, 3]}


def test_without_the_models_config_the_announcements_say_how_many_blocks_there_are() -> None:
    peers = [announcement(0, 2), announcement(5, 7), announcement(0, 9, revision="r2")]
    records = [record(peer) for peer in peers]
    unknown = view_of(records, None, None, 60.0)
    assert (unknown.n_blocks, unknown.missing()) == (7, [2, 3, 4])
    known = view_of(records, 12, "r2", 60.0)
    assert (known.n_blocks, known.missing()) == (12, [9, 10, 11])
    assert view_of([], None, None, 60.0) == View(0, (), 60.0)


def test_blocks_and_routes_for_people() -> None:
    assert spans([5, 0, 1, 2, 7, 8]) == "0-2, 5, 7-8"
    assert spans([]) == ""
    hops = [Hop("12D3KooWabcdef", 0, 5), Hop("12D3KooWuvwxyz", 5, 12)]
    assert route_line(hops) == "you > …abcdef [0:5] > …uvwxyz [5:12] > you"
    assert route_json(hops)[1] == {"peer": "12D3KooWuvwxyz", "blocks": [5, 12]}
