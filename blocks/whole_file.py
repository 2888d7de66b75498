"""Owns how a file appears under its name: whole or not at all, however the writing ends. Knows no contents."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A fresh name beside `path`; what is made under it takes the place of `path`, or is removed if anything fails.

    Errors: `OSError` about `path`, which is then as it was.
    """
    fresh = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        yield fresh
        fresh.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # nobody knows the other name
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file as a whole; the umask may take rights of `mode` away. Errors: `OSError`, as `replacing`."""
    with replacing(path) as fresh, os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # or a power cut may leave the name with nothing under it
