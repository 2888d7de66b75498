"""Writes docs/commands.md from the commands' own help, so that the two cannot differ (tests/unit/test_docs.py looks).

python scripts/command_reference.py > docs/commands.md
"""

from __future__ import annotations

import os
import subprocess
import sys

from shoal.client.cli.commands import find_commands

HEAD = """\
# Commands

What each command says about itself. This page is made by `scripts/command_reference.py`; do not edit it by hand.
"""


def help_of(*argv: str) -> str:
    """The help text of a command, at a fixed width and without colour."""
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    argv = (sys.executable, "-m", "shoal.client.cli.main", *argv, "--help")
    return subprocess.run(argv, capture_output=True, text=True, check=True, env=environment).stdout.rstrip()


def reference() -> str:
    """The whole page."""
    parts = [HEAD, f"## shoal\n\n```text\n{help_of()}\n```\n"]
    parts += [f"## shoal {name}\n\n```text\n{help_of(name)}\n```\n" for name in sorted(find_commands())]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(reference())
