"""How every command reads its arguments: one line on a mistake, and the kinds of values they share; runs nothing.

It stands here because `peer` and `client` both build on `dht`, which builds on nothing of ours.
"""

from __future__ import annotations

import argparse
import os
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from shoal.dht.swarms import VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_ECHOED = 60  # characters of a wrong value
JOIN_HELP = "the swarm: its invite, or a name that `shoal swarms` keeps it under (default: $SHOAL_JOIN)"


class Parser(argparse.ArgumentParser):
    """A parser that complains in one line, without the whole usage, and shows the summary's line breaks as written."""

    def __init__(self, command: str, summary: str, example: str) -> None:
        super().__init__(
            prog=f"shoal {command}",
            description=summary,
            epilog=f"Example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, unless `parser_of` is what looks."""
        if _looking.get():
            raise _Seen(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        line = " ".join(message.split())
        self.exit(2, f"{self.prog}: {line} (`{self.prog} --help` tells more)\n")


_looking: ContextVar[bool] = ContextVar("looking", default=False)


class _Seen(Exception):
    """Carries a parser out of a command that was about to read its words."""

    def __init__(self, parser: Parser) -> None:
        super().__init__(parser.prog)
        self.parser = parser


def parser_of(command: Callable[[list[str]], int]) -> Parser:
    """The parser of a command, which is not run: each one's first act is to read its words.

    Errors: `TypeError` for a command that reads them otherwise.
    """
    token = _looking.set(True)
    try:
        command([])
    except _Seen as seen:
        return seen.parser
    finally:
        _looking.reset(token)
    raise TypeError(f"{command} does not begin by reading its arguments with dht.arguments.Parser")


def add_join(parser: argparse.ArgumentParser, *, needed: bool = True, help_text: str = JOIN_HELP) -> None:
    """`--join`, whose value `dht.swarms.find_invite` reads. Where it is not given SHOAL_JOIN counts."""
    default = os.environ.get(VARIABLE) or None
    parser.add_argument(
        "--join", required=needed and default is None, default=default, metavar="INVITE", help=help_text
    )


def add_subcommands(parser: argparse.ArgumentParser) -> Callable[[str, str, str], argparse.ArgumentParser]:
    """Let `parser` take a further word, kept as `action`; what is returned adds one: (name, summary, example)."""
    made = parser.add_subparsers(dest="action", required=True, metavar="COMMAND", title="commands", parser_class=_Sub)

    def add(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        return made.add_parser(name, help=summary, summary=summary, example=example)

    return add


class _Sub(Parser):
    """What `add_subparsers` makes: it says the program's name itself."""

    def __init__(self, *, prog: str, summary: str, example: str) -> None:
        super().__init__(prog.removeprefix("shoal "), summary, example)


def echoed(text: str) -> str:
    """A wrong value as a complaint shows it."""
    return repr(text if len(text) <= MOST_ECHOED else f"{text[:MOST_ECHOED]}…")


def file(text: str) -> Path:
    """A file's name."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name is no file: name one, or leave this option out")
    return Path(text)


def whole(low: int) -> Callable[[str], int]:
    """A whole number of at least `low`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if number < low:
            raise argparse.ArgumentTypeError(f"{echoed(text)} is not a whole number from {low} up")
        return number

    return read


def port(text: str) -> int:
    """A TCP port; 0 is any free one."""
    if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(
            f"{echoed(text)} is not a port: give a number from 1 to 65535, or 0 for any free one"
        )
    return int(text)


def seconds(text: str) -> float:
    """A duration in seconds, from 0 up."""
    try:
        duration_s = float(text)
    except ValueError:
        duration_s = -1.0
    if not 0.0 <= duration_s < 1e9:
        raise argparse.ArgumentTypeError(f"{echoed(text)} is not a number of seconds")
    return duration_s


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    unit: 2 ** (10 * power) for power, unit in enumerate(("KIB", "MIB", "GIB", "TIB"), start=1)
}

_RATES = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "kbit/s": 1e3, "mbit/s": 1e6, "gbit/s": 1e9}


def rate(text: str) -> float:
    """Bytes a second of a rate in bits, as in 20Mbit, 1.5Gbit or 800kbit; more than none and at most 100 Gbit/s."""
    unit = text.lstrip("0123456789.")
    number = text.removesuffix(unit)
    try:
        bits = float(number) * _RATES[unit.strip().lower()]
    except (KeyError, ValueError):
        bits = 0.0
    if not 8e3 <= bits <= 1e11:
        raise argparse.ArgumentTypeError(
            f"{echoed(text)} is not a rate: write it as in 20Mbit or 1.5Gbit, from 8kbit to 100Gbit"
        )
    return bits / 8


def size(text: str) -> int:
    """Bytes, as in 10GiB, 512 MiB, 1.5GB or 1000000; more than none and less than 2**60."""
    unit = text.lstrip("0123456789.")
    number = text.removesuffix(unit)
    try:
        n_bytes = int(float(number) * _UNITS[unit.strip().upper()])
    except (KeyError, ValueError, OverflowError):
        n_bytes = 0
    if not 0 < n_bytes < 2**60:
        raise argparse.ArgumentTypeError(f"{echoed(text)} is not a size: write it as in 10GiB, 512MiB or 8GB")
    return n_bytes
