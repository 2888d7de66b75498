"""Invites that are kept under names, and every way in which a command is told which swarm is meant."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from shoal.client.cli.main import main
from shoal.client.model.loading import Options
from shoal.dht.errors import InviteError
from shoal.dht.invite import Invite
from shoal.dht.swarms import KeptSwarms, config_folder, find_invite

MADDR = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
PRIVATE = Invite("ours", "demo", (MADDR,), b"s" * 32)
PUBLIC = Invite("all", "org/model", (MADDR,))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("SHOAL_JOIN", raising=False)
    return tmp_path / "shoal"


def said(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 0) -> str:
    assert main(["swarms", *argv]) == status
    out, err = capsys.readouterr()
    return err if status else out


def test_a_life_of_names(capsys, folder) -> None:
    said(capsys, "add", "home", PRIVATE.encode())
    said(capsys, "add", "big", PUBLIC.encode())
    said(capsys, "add", "big", PUBLIC.encode())  # once more is no harm
    assert said(capsys, "list").splitlines() == [
        "big   the public swarm 'all' of org/model", "home  the private swarm 'ours' of demo",
    ]  # fmt: skip
    assert find_invite("home") == PRIVATE
    assert "another swarm already" in said(capsys, "add", "big", PRIVATE.encode(), status=1)
    said(capsys, "add", "big", PRIVATE.encode(), "--replace")
    assert find_invite(" big ") == PRIVATE
    said(capsys, "remove", "home")
    assert list(KeptSwarms().all()) == ["big"]
    assert stat.S_IMODE((folder / "swarms.json").stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == ["swarms.json"]


def test_secrets_are_shown_only_when_asked_for(capsys) -> None:
    KeptSwarms().add("home", PRIVATE)
    for argv in (["list"], ["list", "--json"], ["show", "home"], ["show", "home", "--json"]):
        out = said(capsys, *argv)
        assert "home" in out
        assert PRIVATE.encode() not in out
    assert json.loads(said(capsys, "list", "--json")) == [
        {"name": "home", "swarm": "ours", "model": "demo", "private": True, "peers": [MADDR]}
    ]
    assert said(capsys, "show", "home", "--invite").strip() == PRIVATE.encode()
    assert json.loads(said(capsys, "show", "home", "--json", "--invite"))["invite"] == PRIVATE.encode()


def test_an_invite_from_stdin(capsys, monkeypatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(PRIVATE.encode() + "\n"))
    said(capsys, "add", "home", "-")
    assert find_invite("home") == PRIVATE


@pytest.mark.parametrize("name", ["", "-x", "a b", "../x", "shoal1x", "x" * 65, "ü"])
def test_names_are_checked(name: str) -> None:
    with pytest.raises(InviteError, match="cannot name a swarm"):
        KeptSwarms().add(name, PUBLIC)


def test_an_unknown_name_says_which_there_are(capsys) -> None:
    assert "shoal swarms add" in said(capsys, "show", "home", status=1)
    KeptSwarms().add("home", PRIVATE)
    KeptSwarms().add("office", PUBLIC)
    assert "did you mean 'home'?" in said(capsys, "remove", "hoome", status=1)
    for argv in (["status"], ["generate", "x"], ["peer"], ["invite"]):
        assert main([*argv, "--join", "xyz"]) == 1
        assert "there are: home, office" in capsys.readouterr().err
    with pytest.raises(InviteError, match="there are: home, office"):
        Options(join="xyz").invite(None)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"swarms": []}', '{"swarms": {"a": 1}}'])
def test_a_spoilt_file_is_named_and_left_alone(capsys, folder, text: str) -> None:
    folder.mkdir()
    (folder / "swarms.json").write_text(text)
    assert "swarms.json" in said(capsys, "list", status=1)
    assert "swarms.json" in said(capsys, "add", "home", PUBLIC.encode(), status=1)
    assert (folder / "swarms.json").read_text() == text


@pytest.mark.parametrize("token", ["shoal1spoilt", "else"])
def test_an_entry_that_is_spoilt_is_named_and_can_be_forgotten(capsys, folder, token: str) -> None:
    KeptSwarms().add("home", PRIVATE)
    file = folder / "swarms.json"
    file.write_text(json.dumps({"swarms": {"home": PRIVATE.encode(), "an old one": token}}))
    for argv in (["list"], ["show", "an old one"]):
        told = said(capsys, *argv, status=1)
        assert "'an old one'" in told
        assert str(file) in told
        assert "shoal swarms remove 'an old one'" in told
    said(capsys, "remove", "an old one")
    assert list(KeptSwarms().all()) == ["home"]


def test_a_full_disk_keeps_what_there_was(capsys, folder, monkeypatch) -> None:
    KeptSwarms().add("home", PRIVATE)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert "disk is full" in said(capsys, "add", "big", PUBLIC.encode(), status=1)
    assert list(KeptSwarms().all()) == ["home"]
    assert [path.name for path in folder.iterdir()] == ["swarms.json"]


def test_the_environment_may_name_the_swarm(capsys, monkeypatch) -> None:
    with pytest.raises(InviteError, match="No swarm was named"):
        find_invite(None)
    with pytest.raises(ValueError, match="Say which swarm"):
        Options()
    KeptSwarms().add("home", PRIVATE)
    monkeypatch.setenv("SHOAL_JOIN", "home")
    assert find_invite(None) == Options().invite(None) == PRIVATE
    assert Options(initial_peers=[MADDR]).invite("m").model == "m"  # what is said wins
    monkeypatch.setenv("SHOAL_JOIN", "xyz")
    assert main(["status"]) == 1
    assert "there are: home" in capsys.readouterr().err


def test_where_the_file_is(monkeypatch, tmp_path) -> None:
    assert config_folder() == tmp_path / "shoal"
    for other in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", other)
        assert config_folder() == Path(os.path.expanduser("~")) / ".config" / "shoal"  # noqa: PTH111


def test_an_invite_again_with_other_addresses(capsys) -> None:
    KeptSwarms().add("home", PRIVATE)
    other = MADDR.replace("tcp/1/", "tcp/2/")
    assert main(["invite", "--join", "home", "--peers", MADDR, other]) == 0
    assert Invite.parse(capsys.readouterr().out) == Invite("ours", "demo", (MADDR, other), b"s" * 32)
    with pytest.raises(SystemExit):
        main(["invite", "--join", "home", "--private"])
    assert "leave --model" in capsys.readouterr().err
