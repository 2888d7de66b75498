"""What others on the machine or in the directory may lay before us: files, endless nesting, requests given up."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from shoal.client.cli.complaint import complaint
from shoal.dht.daemon import Handling
from shoal.dht.folder import sweep
from shoal.dht.foreign import CALL_ERRORS, dht_pb2
from shoal.peer.errors import HopRefused, Reason


def test_a_link_in_a_folder_that_looks_like_ours_leads_to_no_file_of_ours(tmp_path):
    mine, trap = tmp_path / "mine", tmp_path / "shoal-host-x"
    mine.write_text("what I need")
    trap.mkdir()
    (trap / "lock").symlink_to(mine)
    (tmp_path / "shoal-host-y").symlink_to(tmp_path)
    left = tmp_path / "shoal-host-z"
    left.mkdir()
    (left / "lock").touch()
    for folder in (trap, left):
        os.utime(folder, (time.time() - 3600,) * 2)
    sweep(tmp_path)
    assert mine.read_text() == "what I need"
    assert not left.exists()


async def test_a_request_that_was_given_up_is_forgotten():
    handling, over = Handling(), asyncio.Event()

    async def answer() -> None:
        await over.wait()

    for number in range(3):
        handling[number] = asyncio.create_task(answer())
    handling[0].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [*handling] == [1, 2]
    over.set()
    await asyncio.sleep(0.01)
    assert not handling


@pytest.mark.parametrize("answer", [b"\xff\xff\xff\xff", None])
def test_an_answer_that_is_no_message_is_a_failed_call(answer):
    with pytest.raises(CALL_ERRORS):
        dht_pb2.FindResponse.FromString(answer)


def test_anothers_words_write_nothing_but_their_line():
    said = complaint(HopRefused("p", Reason.BUSY, "p refused: \x1b[2J\x1b]0;owned\x07 no\nroom\u202e"))
    assert said is not None
    assert said.isprintable()
    assert "no room" in said
