"""`enter.py NAMESPACE COMMAND...`: becomes COMMAND inside a network namespace. Quick: imports nothing of ours."""

from __future__ import annotations

import ctypes
import os
import sys

CLONE_NEWNET = 0x40000000


def set_namespace(descriptor: int) -> None:
    """Move the calling thread into a network namespace. Errors: `OSError`."""
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"cannot enter the network namespace: {os.strerror(number)}")


def main() -> None:
    """Enter and become the command."""
    try:
        descriptor = os.open(sys.argv[1], os.O_RDONLY | os.O_CLOEXEC)
        set_namespace(descriptor)
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"wan: {sys.argv[2]}: {error.strerror or error}")


if __name__ == "__main__":
    main()
