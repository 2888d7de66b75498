"""What a command makes of closed streams, other encodings and bytes that are no text."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from shoal.client.cli.complaint import CommandError
from shoal.client.cli.lines import Pipe, message
from shoal.client.cli.main import main
from shoal.client.cli.surroundings import utf8
from shoal.dht.invite import Invite

if TYPE_CHECKING:
    from pathlib import Path

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
UNICODE = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
SETTLE = "import os, sys\nfrom shoal.client.cli.surroundings import settle, utf8\nsettle()\n"
INVITE = Invite("default", "demo", ("/ip4/127.0.0.1/tcp/1/p2p/12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo",))


def python(code: str, *arguments: bytes, given: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], input=given, capture_output=True, check=False, timeout=60,
        env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_s_number_is_no_socket_s(closed: str) -> None:
    code = f"{SETTLE}import socket\nprint('result')\nprint('progress', file=sys.stderr)\nsys.stdin.read()\n"
    code += "assert socket.socket().fileno() > 2\n"
    code += "child = 'import os; [os.fstat(number) for number in range(3)]'\nimport subprocess\n"
    code += "assert subprocess.run([sys.executable, '-c', child]).returncode == 0\nos._exit(7)"
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" "$@" {closed}', sys.executable, "-c", code],
        stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 7, done.stderr


def test_what_an_encoding_has_no_sign_for_is_printed_all_the_same() -> None:
    done = python(SETTLE + "print('\\u2026abc \\xe9')", **ASCII)
    assert (done.returncode, done.stdout) == (0, b"?abc ?\n")
    done = python(SETTLE + "print('\\u2026abc \\xe9')", **UNICODE)
    assert (done.returncode, done.stdout.decode()) == (0, "…abc é\n")


def test_a_stream_that_was_made_for_another_file_is_left_alone(tmp_path: Path) -> None:
    """As in a process that is forked first and gets its pipes afterwards."""
    code = "import os, sys\nold = os.dup(1)\nnew = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\nos.dup2(new, 1)\n"
    code += "sys.stdout = open(1, 'w', closefd=False)\nsys.stdout.write('.')\nsys.stdout.flush()\nos.dup2(old, 1)\n"
    done = python(code + SETTLE + "print('result')", os.fsencode(tmp_path / "file"), **UNICODE)
    assert (done.returncode, done.stdout) == (0, b"result\n"), done.stderr


@pytest.mark.parametrize("locale", [ASCII, UNICODE], ids=["ascii", "utf-8"])
def test_text_is_utf_8_whatever_the_locale(locale: dict[str, str]) -> None:
    code = SETTLE + "print(ascii([utf8(sys.argv[1]), utf8(sys.stdin.read())]))"
    done = python(code, "naïve …".encode(), given="é".encode(), **locale)
    assert done.stdout.decode().strip() == ascii(["naïve …", "é"]), done.stderr


@pytest.mark.parametrize("locale", [ASCII, UNICODE], ids=["ascii", "utf-8"])
def test_bytes_that_are_no_text_are_one_line(locale: dict[str, str]) -> None:
    code = "import sys\nfrom shoal.client.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    for *arguments, given in (
        (b"generate", b"a\xff", b""), (b"generate", b"-", b"\xff"), (b"generate", b"x", b"--stop", b"\xff", b""),
        (b"chat", b"--system", b"\xff", b""), (b"demo", b"--prompt", b"\xff", b""),
    ):  # fmt: skip
        join = [] if arguments[0] == b"demo" else [b"--join", INVITE.encode().encode()]
        done = python(code, *arguments, *join, given=given, **locale)
        assert done.returncode == 1
        assert done.stderr == b"shoal: the text is not UTF-8; convert it, for instance with iconv\n"


def test_a_line_of_a_conversation_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipe, "read", lambda *_: "h\udcc3\udca9")
    assert message(Pipe()) == "hé"
    monkeypatch.setattr(Pipe, "read", lambda *_: "\udcff")
    with pytest.raises(CommandError, match="not UTF-8"):
        message(Pipe())


def test_text_that_is_text_stays() -> None:
    assert utf8("🐦 naïve\x00") == "🐦 naïve\x00"
    assert main(["version"]) == 0
