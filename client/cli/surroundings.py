"""What a command finds around it, made fit to work with: its streams, its home, its text; knows no command."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from pathlib import Path

from shoal.client.cli.complaint import CommandError


def settle() -> None:
    """Before anything is opened or printed."""
    _fill_descriptors()
    _bear_any_encoding()
    _have_home()


def utf8(given: str) -> str:
    """Text from the command line or stdin: UTF-8, also where the locale says otherwise. Errors: `CommandError`."""
    try:
        given.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(given).decode()
        except UnicodeError:
            raise CommandError("the text is not UTF-8; convert it, for instance with iconv") from None
    return given


def _fill_descriptors() -> None:
    """Where a service's starter closed stdin, stdout or stderr, the next socket would take its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def _bear_any_encoding() -> None:
    """What is printed has a `?` for each sign that its encoding lacks. What is read is for `utf8` to judge."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # a stream that was made for a file before its number became a pipe's
                stream.reconfigure(errors=errors)


def _have_home() -> None:
    """A user whom the system does not know, as in some containers, has no home: then it is `/`, as Docker has it."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"
