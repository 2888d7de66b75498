"""How commands read their arguments: one line on a mistake, and the kinds of values they share; runs nothing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = ("float32", "bfloat16", "float16")


class Parser(argparse.ArgumentParser):
    """A parser that complains in one line, without the whole usage, and shows defaults and line breaks as written."""

    def __init__(self, command: str, summary: str, example: str) -> None:
        super().__init__(
            prog=f"shoal {command}",
            description=summary,
            epilog=f"Example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {message} (`{self.prog} --help` tells more)\n")


def whole(low: int) -> Callable[[str], int]:
    """A whole number of at least `low`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if number < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} up")
        return number

    return read


def seconds(text: str) -> float:
    """A duration in seconds, from 0 up."""
    try:
        duration_s = float(text)
    except ValueError:
        duration_s = -1.0
    if not 0.0 <= duration_s < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return duration_s


def token_ids(text: str) -> tuple[int, ...]:
    """Token ids with commas between, such as `1,2,3`."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of token ids such as 1,2,3") from None


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The options of `client.sampling.Sampling`, which checks their ranges."""
    group = parser.add_argument_group("choice of tokens")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default)")
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="only the K most probable tokens; 0 is off")
    group.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="only the most probable tokens that hold P"
    )
    group.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="only tokens at least P times as probable as the best"
    )
    group.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="over 1 repeats less")
    group.add_argument("--seed", type=int, metavar="S", help="draw the same tokens each time")
