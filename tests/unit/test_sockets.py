"""The folder of a volunteer's sockets: found, private, rid of those whose process is gone."""

from __future__ import annotations

import json
import os
import socket
import threading

import pytest
from shoal.peer import sockets
from shoal.peer.config import PeerError

PEER = "12D3KooWAbcdefgh"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "shoal"


def test_the_folder_is_for_this_user_alone(place):
    assert sockets.folder() == place
    assert place.stat().st_mode & 0o777 == 0o700


def test_without_a_runtime_folder_it_lies_in_the_temporary_one(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(sockets.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(sockets.os, "access", lambda *_: False)
    assert sockets.folder() == tmp_path / f"shoal-{os.getuid()}"


@pytest.mark.parametrize("trouble", ["open to all", "a link", "a file"])
def test_a_folder_that_others_could_use_is_refused(place, tmp_path, trouble):
    if trouble == "open to all":
        place.mkdir()
        place.chmod(0o755)
    elif trouble == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.write_text("")
    with pytest.raises(PeerError, match="not a folder for you alone"):
        sockets.folder()


def test_a_socket_is_there_while_its_process_listens_and_is_cleaned_up_after(place):
    listening, path = sockets.bind(PEER)
    assert sockets.running() == [path]
    assert path.name == f"Abcdefgh-{os.getpid()}.sock"
    assert list(place.iterdir()) == [path]
    listening.close()  # as when the process is killed: the file stays
    assert path.exists()
    assert sockets.running() == []
    assert not path.exists()


def test_a_new_peer_removes_what_a_killed_one_left(place):
    place.mkdir(mode=0o700)
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(place / "old-1.sock"))
    left.close()
    listening, path = sockets.bind(PEER)
    assert list(place.iterdir()) == [path]
    listening.close()


def test_a_path_that_is_too_long_for_a_socket_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 120)))
    with pytest.raises(PeerError, match="cannot listen at"):
        sockets.bind(PEER)


@pytest.mark.parametrize("answer", [b"", b"nonsense\n", b"[]\n", b'{"error": "no"}\n', b"9" * 100_000])
def test_an_answer_that_is_none_is_one_clear_error(answer):
    listening, path = sockets.bind(PEER)
    listening.setblocking(True)

    def serve():
        line, _ = listening.accept()
        with line:
            asked.append(json.loads(line.makefile("rb").readline()))
            line.sendall(answer)

    asked = []
    peer = threading.Thread(target=serve)
    peer.start()
    with pytest.raises(PeerError, match=r"does not answer|says:"):
        sockets.ask(path, {"do": "state"})
    peer.join()
    listening.close()
    assert asked == [{"do": "state"}]
