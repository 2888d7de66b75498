"""The kinds of values that only the client's commands read, and the options of sampling; runs nothing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from shoal.client.guess import MOST
from shoal.client.sampling_options import Sampling, SamplingError
from shoal.dht.arguments import echoed

if TYPE_CHECKING:
    from collections.abc import Callable


def token_ids(text: str) -> tuple[int, ...]:
    """Token ids with commas between, such as `1,2,3`."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of token ids such as 1,2,3") from None


def add_speculation(parser: argparse._ActionsContainer) -> None:
    """The option of speculative decoding."""
    parser.add_argument(
        "--speculate", type=_guesses, default=0, metavar="N",
        help="guess up to N tokens from the text so far and send them along: as many as pay, and wrong ones change "
        "nothing; quicker where texts repeat themselves and peers are far away (default 0: off)",
    )  # fmt: skip


def _guesses(text: str) -> int:
    if not text.isdecimal() or len(text) > 3 or int(text) > MOST:
        raise argparse.ArgumentTypeError(f"{echoed(text)} is not a whole number from 0 (off) to {MOST}")
    return int(text)


def add_sampling(parser: argparse.ArgumentParser, *, suggested: bool = False) -> None:
    """The options of `Sampling`, in its ranges. `suggested`: what is not given is None, for the model's own suggestion
    to hold."""
    text = "What is not given is as the model's makers suggest, else as said here." if suggested else None
    group = parser.add_argument_group("choice of tokens", text)
    group.add_argument(
        "--temperature", type=_option("temperature", float), default=0.0, metavar="T", help="0 is greedy (default)"
    )
    group.add_argument(
        "--top-k", type=_option("top_k", int), default=0, metavar="K", help="only the K most probable tokens; 0 is off"
    )
    group.add_argument(
        "--top-p",
        type=_option("top_p", float),
        default=1.0,
        metavar="P",
        help="only the most probable tokens that hold P",
    )
    group.add_argument(
        "--min-p",
        type=_option("min_p", float),
        default=0.0,
        metavar="P",
        help="only tokens at least P times as probable as the best",
    )
    group.add_argument(
        "--repetition-penalty",
        type=_option("repetition_penalty", float),
        default=1.0,
        metavar="R",
        help="over 1 repeats less",
    )
    group.add_argument("--seed", type=_option("seed", int), metavar="S", help="draw the same tokens each time")
    if suggested:
        parser.set_defaults(temperature=None, top_k=None, top_p=None, min_p=None, repetition_penalty=None)


def _option(name: str, kind: type[float]) -> Callable[[str], float]:
    def value(text: str) -> float:
        try:
            number = kind(text)
            Sampling(**{name: number})  # type: ignore[arg-type]
        except SamplingError as error:
            raise argparse.ArgumentTypeError(str(error).removesuffix(".")) from None
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' * (kind is int)}number") from None
        return number

    return value
