"""How long ago somebody touched this machine, where that can be known. Reads the system's own notes; decides nothing.

- Terminals and ssh sessions: the kernel dates each terminal's last input (to 8 s).
- The desktop: systemd's login manager is told by GNOME, KDE and others when nobody is there. It says no more than
  "somebody is": that reads as 0 s.
- macOS: the time since the last event of keyboard, mouse or trackpad.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

TERMINALS = Path("/dev/pts")
ASK_S = 3.0


def input_s() -> float | None:
    """Seconds since the last input; None if nothing here could tell."""
    known = [since_s for since_s in (terminals(), desktop(), macos()) if since_s is not None]
    return min(known, default=None)


def terminals() -> float | None:
    """Since somebody typed in a terminal."""
    latest = 0.0
    try:
        for path in TERMINALS.iterdir():
            if path.name.isdecimal():
                latest = max(latest, path.stat().st_atime)
    except OSError:
        return None
    return max(0.0, time.time() - latest) if latest else None


def desktop() -> float | None:
    """What the login manager says."""
    if shutil.which("loginctl") is None:
        return None
    said = _output("loginctl", "show-session", "--property=IdleHint", "--property=IdleSinceHint")
    return hint(said, time.time())


def hint(said: str, now: float) -> float | None:
    """Seconds since input from the login manager's properties; times there are microseconds since the epoch."""
    told = dict(line.partition("=")[::2] for line in said.splitlines())
    if told.get("IdleHint") == "no":
        return 0.0
    since = told.get("IdleSinceHint", "")
    if told.get("IdleHint") != "yes" or not since.isdecimal() or not int(since):
        return None
    return max(0.0, now - int(since) / 1e6)


def macos() -> float | None:
    """What the input system says."""
    if shutil.which("ioreg") is None:
        return None
    return hid(_output("ioreg", "-c", "IOHIDSystem", "-d", "4"))


def hid(said: str) -> float | None:
    """Seconds since input from ioreg's listing, which has nanoseconds."""
    found = re.search(r'"HIDIdleTime" = (\d+)', said)
    return int(found[1]) / 1e9 if found else None


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
