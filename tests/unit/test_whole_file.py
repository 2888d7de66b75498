"""Files that are there whole or not at all; who keeps something in one has its own test of a full disk."""

from __future__ import annotations

import errno
import os
import stat

import pytest
from full_disk import full_disk
from shoal.blocks.whole_file import replacing, write_whole


def test_the_new_takes_the_place_of_the_old_and_nothing_lies_beside_it(tmp_path) -> None:
    path = tmp_path / "kept"
    for content in (b"old and long", b"new"):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("mode", "given"), [(0o600, 0o600), (0o666, 0o640), (0o755, 0o750)])
def test_who_may_read_it_is_said_and_the_user_may_take_more_away(tmp_path, mode: int, given: int) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "kept", b"", mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == given


def test_a_full_disk_leaves_what_there_was_and_names_the_file(tmp_path) -> None:
    path = tmp_path / "kept"
    write_whole(path, b"old")
    with full_disk(), pytest.raises(OSError, match="too large") as raised:
        write_whole(path, bytes(100))
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(path))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_whatever_else_goes_wrong_leaves_nothing_either(tmp_path) -> None:
    def interrupted() -> None:
        with replacing(tmp_path / "kept") as fresh:
            fresh.touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", tmp_path / "none" / "kept"):
        with pytest.raises(OSError, match=str(place)):
            write_whole(place, b"")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
