"""A folder that only this user can enter, for one process's daemon: it vanishes with it, however that ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER_PREFIX = "shoal-host-"
LOCK_NAME = "lock"
SWEEP_AGE_S = 60.0
MAX_PARENT_CHARS = 50  # a unix socket's path has at most 107 characters


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder of mode 0700 whose path is short enough for a unix socket; removed with all in it."""
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > MAX_PARENT_CHARS:
        parent = Path("/tmp")  # noqa: S108  mkdtemp makes the folder ours alone
    sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent))
    try:
        with (folder / LOCK_NAME).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove the folders of processes that were killed: those whose lock nobody holds any more."""
    for folder in parent.glob(FOLDER_PREFIX + "*"):
        with suppress(OSError):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue  # of somebody else, who may have laid a link to a file of ours in it
            if found.st_mtime > time.time() - SWEEP_AGE_S:
                continue  # its owner may not have locked it yet
            with os.fdopen(os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its owner lives
                shutil.rmtree(folder, ignore_errors=True)
