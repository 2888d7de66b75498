"""A peer that serves something else than its swarm: its volunteer is told, before it loads or when it is online."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from shoal.dht.errors import JoinError
from shoal.dht.invite import Invite
from shoal.peer import preview as preview_module
from shoal.peer.config import PeerConfig, PeerError
from shoal.peer.loading import open_model
from shoal.peer.matching import check_invited, mismatch, warn_of_others

OLD, NEW, FILES, OTHER_FILES = "a" * 40, "b" * 40, "c" * 16, "d" * 16


def config(model: str | None = None, invited: str = "ORG/Small") -> PeerConfig:
    return PeerConfig(Invite("home", invited, ()), invited if model is None else model)


def test_another_model_than_the_invite_s_is_refused_before_anything_is_read():
    with pytest.raises(PeerError) as refusal:
        open_model(config("ORG/Large"))
    (line,) = str(refusal.value).splitlines()
    assert "for ORG/Small" in line
    assert "leave --model out" in line
    assert "shoal invite --model ORG/Large" in line


@pytest.mark.parametrize(("model", "invited"), [("ORG/Large", "demo"), ("demo", "ORG/Small")])
def test_the_demo_is_a_model_of_its_own(model, invited):
    with pytest.raises(PeerError, match=f"for {invited}"):
        check_invited(config(model, invited))


@pytest.mark.parametrize(
    ("model", "invited"),
    [
        ("ORG/Small", "ORG/Small"),
        ("org/small", "ORG/Small"),  # the hub does not tell these apart
        ("{here}/large", "ORG/Small"),  # a copy of it, or not: its revision will tell
        ("./large", "ORG/Small"),
        ("ORG/Large", "{here}/small"),
        ("gpt2", "ORG/gpt2"),  # old names of the hub lead to new ones
        ("demo", "demo"),
        ("ORG/Large", "tiny"),
    ],
)
def test_what_may_be_the_invite_s_model_is_not_refused(model, invited, tmp_path):
    for folder in ("large", "small"):
        (tmp_path / folder).mkdir()
    check_invited(config(model.format(here=tmp_path), invited.format(here=tmp_path)))


def test_a_folder_that_is_called_like_a_model_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "ORG" / "Large").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    check_invited(config("ORG/Large"))


@pytest.mark.parametrize(
    ("ours", "others"),
    [
        (NEW, []),
        (NEW, [NEW]),
        (NEW, [OLD, NEW]),
        (NEW, [OLD, OLD, NEW]),  # as many as of ours, with this peer
        (NEW, ["\x1b[2J", "two\nlines", ""]),  # a stranger's words are no revision
    ],
)
def test_who_serves_what_others_do_is_told_nothing(ours, others):
    assert mismatch(config(), ours, others) == ""


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([OLD], f"1 peer of this swarm serves revision {OLD}, this one alone {NEW}"),
        ([OLD, OLD, FILES], f"2 peers of this swarm serve revision {OLD}, this one alone {NEW}"),
        ([OLD, OLD, OLD, NEW], f"3 peers of this swarm serve revision {OLD}, this one and 1 more {NEW}"),
        ([OLD, "x" * 16 + "\n", "\x1b[2J"], f"1 peer of this swarm serves revision {OLD}, this one alone {NEW}"),
    ],
)
def test_who_serves_another_revision_is_told_which_others_serve(others, said):
    found = mismatch(config(), NEW, others)
    assert found.startswith(said)
    assert found.endswith(f"start it with --revision {OLD}.")


@pytest.mark.parametrize(
    ("given", "ours", "theirs", "advice"),
    [
        (config(), NEW, OLD, f"with --revision {OLD}"),
        (config("./copy"), FILES, OLD, f"with --model ORG/Small --revision {OLD}"),
        (config("./copy", "./copy"), FILES, OLD, f"with --model NAME --revision {OLD}"),
        (config("ORG/Large", "tiny"), NEW, OLD, f"with --model NAME --revision {OLD}"),
        (config("./copy", "demo"), FILES, OTHER_FILES, "without --model"),
        (config(), NEW, FILES, "give --model a copy of their directory"),
        (config("demo", "demo"), FILES, OTHER_FILES, "give --model a copy of their directory"),
    ],
)
def test_what_to_do_depends_on_what_the_others_have(given, ours, theirs, advice):
    found = mismatch(given, ours, [theirs])
    assert found.endswith(f"{advice}.")
    assert "\n" not in found


class Lookup:
    """A directory with these peers' revisions; None: nobody answers."""

    def __init__(self, revisions: dict[str, str] | None) -> None:
        self.revisions = revisions

    async def lookup(self, within_s=None):
        if self.revisions is None:
            raise JoinError("nobody answers")
        return [SimpleNamespace(peer_id=peer_id, revision=each) for peer_id, each in self.revisions.items()]


@pytest.mark.parametrize(
    ("found", "warnings"), [({"me": OLD, "you": OLD}, 1), ({"me": OLD}, 0), ({"you": NEW}, 0), (None, 0)]
)
async def test_it_is_a_line_on_the_log_and_this_peer_s_own_record_does_not_count(found, warnings, caplog):
    with caplog.at_level(logging.WARNING, "shoal.peer"):
        await warn_of_others(Lookup(found), "me", config(), NEW)
    assert sum(OLD in line for line in caplog.messages) == len(caplog.messages) == warnings


async def test_a_dry_run_says_so_too(monkeypatch, caplog):
    @asynccontextmanager
    async def join(*_arguments):
        async def survey(*_):
            return {}

        yield SimpleNamespace(directory=Lookup({"you": OLD}), host=SimpleNamespace(peer_id="me"), survey=survey)

    for name, stand_in in (("join", join), ("_preview", lambda *_: None), ("_words", lambda _: "")):
        monkeypatch.setattr(preview_module, name, stand_in)
    model = SimpleNamespace(checkpoint=SimpleNamespace(revision=NEW), spec=SimpleNamespace(n_blocks=6))
    with caplog.at_level(logging.WARNING, "shoal.peer"):
        await preview_module.preview(config(), model, None)
    assert [OLD in line for line in caplog.messages] == [True]
