"""What a volunteer may ask of a peer, and what a peer may call itself."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.client.cli.main import main
from shoal.dht.arguments import Parser
from shoal.peer import attended, idling
from shoal.peer.idle import IdleLimits, Sample
from shoal.peer.others import Others
from shoal.peer.pausing import Pausing
from shoal.peer.wishes import add_wishes, idle_limits, public_name
from shoal.routing.names import MAX_MARKS, MAX_NAME_CHARS, checked_name, shown_name

TEXTS = st.text(max_size=60) | st.text(st.characters(categories=["Mn", "Cf", "Lo", "Zs", "Cc"]), max_size=60)


@pytest.mark.parametrize("name", ["alice, RTX 3060", "Zoë", "山田のGPU", "דנה", "สมชาย", "😀 lab", ""])
def test_names_of_every_script_are_taken_as_they_are(name):
    assert checked_name(name) == shown_name(name) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a\nb", r"U\+000A \(a control character\)"), ("\x1b[31mred", r"U\+001B"), ("\u202eecila", "right-to-left"),
        ("a\u2066b", "left-to-right isolate"), ("a\u200bb", "zero width space"), ("\u3164", "hangul filler"),
        ("z" + "\u0336" * 4, "combining marks"), ("x" * 41, "at most 40 characters"), ("a\ud800", r"U\+D800"),
    ],
)  # fmt: skip
def test_what_acts_on_its_surroundings_or_cannot_be_seen_is_refused_with_a_reason(name, why):
    with pytest.raises(ValueError, match=why):
        checked_name(name)
    with pytest.raises(argparse.ArgumentTypeError):
        public_name(name)


@given(TEXTS)
def test_what_is_shown_of_any_text_is_harmless(text):
    shown = shown_name(text)
    assert len(shown) <= MAX_NAME_CHARS
    assert shown.isprintable()
    assert shown_name(shown) == shown
    marks = 0
    for char in shown:
        marks = marks + 1 if unicodedata.category(char) in ("Mn", "Me") else 0
        assert marks <= MAX_MARKS


@given(TEXTS)
def test_what_is_refused_and_what_is_shown_agree(text):
    try:
        name = checked_name(text)
    except ValueError:
        return
    assert shown_name(name) == name


def test_a_bad_name_ends_the_command_before_anything_is_loaded(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["peer", "--join", "x", "--public-name", "\u202eecila"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "a name cannot hold U+202E (right-to-left override)" in said
    assert len(said.splitlines()) == 1


def wishes(*argv: str) -> argparse.Namespace:
    parser = Parser("peer", "", "")
    add_wishes(parser)
    return parser.parse_args(argv)


def test_limits_of_idleness():
    assert idle_limits(wishes()) is None
    assert idle_limits(wishes("--idle-only")) == IdleLimits()
    given = wishes("--idle-only", "--idle-gpu", "5%", "--idle-cpu", "40", "--idle-input", "0", "--idle-after", "7")
    assert idle_limits(given) == IdleLimits(0.05, 0.40, 0.0, 7.0)
    assert wishes("--max-power", "150W").max_power == 150.0


@pytest.mark.parametrize("option", ["--idle-gpu", "--idle-cpu", "--idle-input", "--idle-after"])
def test_a_limit_without_idle_only_is_told(option):
    with pytest.raises(argparse.ArgumentTypeError, match=f"{option} .*add --idle-only"):
        idle_limits(wishes(option, "5"))


@pytest.mark.parametrize(
    "argv", [("--idle-gpu", "-1"), ("--idle-cpu", "101"), ("--max-power", "lots"), ("--max-power", "nan")]
)
def test_figures_that_are_none_are_refused(argv, capsys):
    with pytest.raises(SystemExit):
        wishes("--idle-only", *argv)
    assert "is not a number of" in capsys.readouterr().err


def test_what_somebody_types_in_a_terminal_is_seen():
    """On a real terminal of the kernel's, whose dates are good to 8 s."""
    ours, theirs = os.openpty()
    try:
        os.write(ours, b"hello\n")
        assert os.read(theirs, 10) == b"hello\n"
        since_s = attended.terminals()
        if since_s is None:
            pytest.skip("this system has no /dev/pts")
        assert 0.0 <= since_s <= 9.0
        assert attended.input_s() <= since_s + 1.0
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    ("said", "since_s"),
    [
        ("IdleHint=no\nIdleSinceHint=0\n", 0.0), ("IdleHint=yes\nIdleSinceHint=940000000\n", 60.0),
        ("IdleHint=yes\nIdleSinceHint=0\n", None), ("", None), ("Failed to connect to bus: Host is down", None),
    ],
)  # fmt: skip
def test_what_the_login_manager_says(said, since_s):
    assert attended.hint(said, 1000.0) == since_s


def test_what_a_mac_says():
    assert attended.hid('    | |   "HIDIdleTime" = 2500000000\n    | |   "HIDPointer" = 1') == 2.5
    assert attended.hid("nothing of the kind") is None


def test_work_of_our_own_is_not_that_of_others(monkeypatch, tmp_path):
    """A second of one core's work in this process: counted as ours, so the others' share falls by it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    others = Others(None, lambda: 0.0, people=False)
    strangers = Others(None, lambda: 0.0, people=False)
    monkeypatch.setattr("shoal.peer.others._own", set)  # of nobody: all work is that of others
    strangers._ours = {}
    end = time.process_time() + 1.0
    while time.process_time() < end:
        pass
    everything = strangers.sample()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    without_us = others.sample()
    assert (everything.gpu, everything.input_s) == (None, None)
    assert 0.0 <= without_us.cpu < everything.cpu <= 1.0


async def test_it_pauses_at_first_serves_when_idle_and_pauses_again(monkeypatch):
    monkeypatch.setattr(idling, "LOOK_S", 0.01)
    samples = [Sample(cpu=0.9), *[Sample(cpu=0.0)] * 40, *[Sample(cpu=0.0, input_s=1.0)] * 10_000]
    seen = []

    class Scripted:
        def sample(self):
            seen.append(dict(pausing.reasons))
            return samples[len(seen) - 1]

    pausing = Pausing(1.0)
    watching = asyncio.create_task(idling.serve_while_idle(pausing, IdleLimits(settle_s=0.1), Scripted()))
    async with asyncio.timeout(20):
        while len(seen) < 43:
            await asyncio.sleep(0.01)
    watching.cancel()
    assert seen[0] == {"machine": "waiting to see whether this machine is idle"}
    assert seen[1] == {"machine": "other programs use 90 % of the processor"}
    assert {} in seen
    assert seen[42] == {"machine": "somebody used this machine less than 300 s ago"}
    json.dumps(seen)  # as it is told over the socket
