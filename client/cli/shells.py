"""`shoal completion`: a script with which a shell completes our commands, made from their own parsers by shtab."""

from __future__ import annotations

import argparse
from pathlib import Path

from shoal.client.cli.commands import find_commands
from shoal.client.cli.terminal import write
from shoal.dht.arguments import Parser, parser_of

SHELLS = ("bash", "zsh", "fish")
KEPT_NAMES = "shoal swarms list --names 2>/dev/null"  # what --join and `shoal swarms show` take
KEPT = {("shoal swarms show", "name"), ("shoal swarms remove", "name")}
SUMMARY = """\
Print a script that lets a shell complete Shoal's commands, options and the names of kept swarms.

To have it in every shell from now on:
  bash  shoal completion bash > ~/.local/share/bash-completion/completions/shoal
  zsh   shoal completion zsh > ~/.zfunc/_shoal     (with `fpath+=~/.zfunc` before compinit in ~/.zshrc)
  fish  shoal completion fish > ~/.config/fish/completions/shoal.fish
Make the folder first if it is not there, and do it again after an update of Shoal."""
EXAMPLE = 'eval "$(shoal completion bash)"'


def completion(argv: list[str]) -> int:
    """Print a script that completes commands and names in your shell."""
    parser = Parser("completion", SUMMARY, EXAMPLE)
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"one of {', '.join(SHELLS)}")
    shell = parser.parse_args(argv).shell
    import shtab

    write(shtab.complete(whole_parser(), shell=shell) + "\n")
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """All commands as one parser, each argument marked with what its values are."""
    whole = argparse.ArgumentParser(prog="shoal", description="Large language models over volunteers' machines.")
    commands = whole.add_subparsers(metavar="COMMAND")
    for name, command in find_commands().items():
        # Made for its place in the list and its summary, then stood in for by the command's own.
        commands.add_parser(name, help=command.summary)
        own = parser_of(command.load())
        own.description = command.summary
        _mark(own)
        commands.choices[name] = own
    return whole


def _mark(parser: argparse.ArgumentParser) -> None:
    import shtab

    for action in parser._actions:  # argparse has no other way to ask what was added
        if action.dest == "join" or (parser.prog, action.dest) in KEPT:
            action.complete = shtab.cmd(KEPT_NAMES)  # type: ignore[attr-defined]  # where shtab looks
        elif action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.dest == "model":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif isinstance(action, argparse._SubParsersAction):
            for further in action.choices.values():
                _mark(further)
