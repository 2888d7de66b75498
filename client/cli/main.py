"""The `shoal` command: finds the command asked for, runs it, and turns its errors into one line; knows no command.

Nothing heavy is imported here: `shoal --help` must answer at once. Ctrl-C must be quiet from the first import on.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from typing import TYPE_CHECKING

from shoal.dht.ending import ending
from shoal.dht.starting import INTERRUPTED, at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shoal.client.cli.commands import Command

FAILED = 1
MISUSED = 2
EXAMPLES = """\
Examples:
  shoal demo                                          see it work on this machine
  shoal bootstrap                                     found a swarm; it prints the INVITE
  shoal peer --join INVITE                            serve some blocks
  shoal generate "class Config(dict):" --join INVITE  continue a prompt
  shoal status --join INVITE                          who serves what

`shoal COMMAND --help` tells more about each, `shoal --version` which Shoal this is."""


def main(argv: list[str] | None = None) -> int:
    """Run one command line; the exit status: 0 well, 1 an error that was told, 2 misuse, 130 interrupted. None: that
    of this process, which ends with it."""
    # The interpreter's last search for garbage in all that torch brings takes seconds, and the system frees it anyway.
    atexit.register(gc.freeze)
    return ending(_run(sys.argv[1:])) if argv is None else _run(argv)


def run(load: Callable[[], Callable[[list[str]], int]], argv: list[str]) -> int:
    """Load and run a command; known errors become one line on stderr (SHOAL_DEBUG=1 shows where they came from)."""
    with at_once():
        from shoal.blocks.lean import leave_out
        from shoal.blocks.waiting import wait_briefly
        from shoal.client.cli.complaint import complaint
        from shoal.client.cli.surroundings import settle

        leave_out()
        wait_briefly()
        settle()
    try:
        with at_once():
            command = load()
        status = command(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        line = complaint(error)
        if line is None or os.environ.get("SHOAL_DEBUG"):
            raise
        sys.stderr.write(f"shoal: {line}\n")
        return FAILED
    return status


def show_help(_: list[str]) -> int:
    """List the commands."""
    with at_once():
        from shoal.client.cli.commands import find_commands

        commands = find_commands()
        width = max(map(len, commands), default=0)
        lines = [f"  {command.name:<{width}}  {command.summary}" for command in commands.values()]
    usage = "usage: shoal COMMAND [ARGUMENTS]\n\nLarge language models over volunteers' machines."
    sys.stdout.write("\n".join([usage, "", "Commands:", *lines, "", EXAMPLES, ""]))
    return 0


def show_version(_: list[str]) -> int:
    """Name the version."""
    with at_once():
        from shoal.dht.version import shoal_version

    sys.stdout.write(f"shoal {shoal_version()}\n")
    return 0


def _run(arguments: list[str]) -> int:
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help", "help"):
        return run(lambda: show_help, [])
    if first in ("-V", "--version", "version"):
        return run(lambda: show_version, [])
    with at_once():
        from shoal.client.cli.commands import find_commands

        commands = find_commands()
        if first not in commands:
            return _misused(first, commands)
    return run(commands[first].load, arguments[1:])


def _misused(name: str, commands: Mapping[str, Command]) -> int:
    from shoal.client.cli.commands import closest

    meant = closest(name, commands)
    hint = f"did you mean `shoal {meant}`?" if meant else "`shoal --help` lists the commands."
    sys.stderr.write(f"shoal: there is no command {name!r}; {hint}\n")
    return MISUSED


def _discard_output() -> None:
    """The reader is gone: let the interpreter's last flush go nowhere instead of complaining."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
