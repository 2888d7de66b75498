"""Writes docs/commands.md from the commands' own help, so that the two cannot differ (tests/unit/test_docs.py looks).

python scripts/command_reference.py > docs/commands.md
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from shoal.client.cli.commands import find_commands
from shoal.dht.arguments import parser_of

if TYPE_CHECKING:
    import argparse

HEAD = """\
# Commands

What each command says about itself. This page is made by `scripts/command_reference.py`; do not edit it by hand.
"""


def help_of(*argv: str) -> str:
    """The help text of a command, at a fixed width and without colour."""
    environment = {**os.environ, "SHOAL_JOIN": "", "COLUMNS": "100", "NO_COLOR": "1"}
    argv = (sys.executable, "-m", "shoal.client.cli.main", *argv, "--help")
    return subprocess.run(argv, capture_output=True, text=True, check=True, env=environment).stdout.rstrip()


def actions_of(parser: argparse.ArgumentParser) -> list[str]:
    """The further words that a command takes, such as `add`."""
    return [name for action in parser._actions if isinstance(action.choices, dict) for name in action.choices]


def reference() -> str:
    """The whole page."""
    parts = [HEAD, f"## shoal\n\n```text\n{help_of()}\n```\n"]
    for name, command in sorted(find_commands().items()):
        helps = [help_of(name), *(help_of(name, action) for action in actions_of(parser_of(command.load())))]
        text = "\n\n".join(helps)
        parts.append(f"## shoal {name}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(reference())
