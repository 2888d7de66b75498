"""What an error means to the person at the terminal: one sentence, or None for a bug; imports no part that may raise.

A class of errors can only have been raised if its module is loaded, so the modules already loaded are all that is
looked at.
"""

from __future__ import annotations

import errno
import sys

EXPECTED = (
    ("shoal.client.cli.complaint", "CommandError"),
    ("shoal.client.sampling_options", "SamplingError"),
    ("shoal.client.generation", "GenerationError"),
    ("shoal.client.chat", "ChatError"),
    ("shoal.blocks.errors", "BlocksError"),
    ("shoal.dht.errors", "DhtError"),
    ("shoal.peer.errors", "ShoalError"),
    ("shoal.peer.config", "PeerError"),
    ("shoal.routing.announcement", "AnnouncementError"),
)
OUT_OF_DEVICE_MEMORY = ("torch", "OutOfMemoryError")
ADVICE = {
    errno.ENOSPC: "the disk is full; free some space and run this again",
    errno.EDQUOT: "your disk quota is used up; free some space and run this again",
    errno.EADDRINUSE: "this port is taken by another program; choose another one with --port",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose another one with --host",
    errno.EMFILE: "too many open files; raise the limit with `ulimit -n 65536`",
}


class CommandError(Exception):
    """A command cannot go on; the message is one sentence that says what to do."""


def complaint(error: BaseException) -> str | None:
    """One line for the user about an error that is not a bug; of a group, the first one's if none is a bug."""
    if isinstance(error, BaseExceptionGroup):
        lines = [complaint(inner) for inner in error.exceptions]
        return None if None in lines else lines[0]
    if isinstance(error, OSError):
        return _system(error)
    if any(_raised_by(error, *known) for known in EXPECTED):
        # It may be another's words, which are not to write anywhere but in this line.
        return " ".join("".join(c if c.isprintable() else " " for c in str(error)).split()) or type(error).__name__
    if _raised_by(error, *OUT_OF_DEVICE_MEMORY):
        return "the device has too little memory for this; take fewer blocks (--blocks) or quantize them (--quant nf4)"
    return None


def _raised_by(error: BaseException, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(error, kind)


def _system(error: OSError) -> str:
    what = ADVICE.get(error.errno or 0) or error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {what}" if error.filename else what
