"""Runs a `shoal` command that must not outlive the process that started it; knows nothing of the command.

Works on every system that has pipes: the parent's end of our stdin closes when the parent is gone, even by SIGKILL.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from shoal.client.cli.main import main

GRACE_S = 10.0


def leave_with_parent() -> None:
    """Wait for stdin's end; then leave as on SIGTERM, or at once if that takes too long."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=leave_with_parent, name="leash", daemon=True).start()
    sys.exit(main())
