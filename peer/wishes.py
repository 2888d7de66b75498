"""The options of `shoal peer` by which a volunteer keeps the machine's owner first; reads them, runs nothing."""

from __future__ import annotations

import argparse
import math

from shoal.dht.arguments import seconds
from shoal.peer.idle import IdleLimits
from shoal.routing.names import checked_name

MAX_WATTS = 10_000.0
DEFAULT = IdleLimits()
IDLE_OPTIONS = ("idle_gpu", "idle_cpu", "idle_input", "idle_after")


def add_wishes(parser: argparse.ArgumentParser) -> None:
    """Let `parser` take them."""
    mine = parser.add_argument_group(
        "your machine first", "`shoal pause` and `shoal resume` do by hand what --idle-only does by itself."
    )
    mine.add_argument("--idle-only", action="store_true", help="serve only while nobody else uses this machine")
    mine.add_argument(
        "--idle-gpu", type=share, metavar="PERCENT",
        help=f"pause when other programs use more of the GPU (default {100 * DEFAULT.gpu:.0f}; 0: never)",
    )  # fmt: skip
    mine.add_argument(
        "--idle-cpu", type=share, metavar="PERCENT",
        help=f"pause when other programs use more of all cores (default {100 * DEFAULT.cpu:.0f}; 0: never)",
    )  # fmt: skip
    mine.add_argument(
        "--idle-input", type=seconds, metavar="SECONDS",
        help=f"pause when somebody touched the machine less than this ago (default {DEFAULT.input_s:.0f}; 0: never)",
    )  # fmt: skip
    mine.add_argument(
        "--idle-after", type=seconds, metavar="SECONDS",
        help=f"serve again when all that has been quiet for so long (default {DEFAULT.settle_s:.0f})",
    )  # fmt: skip
    mine.add_argument(
        "--max-power", type=watts, metavar="WATTS",
        help="keep the GPU under this power: by its driver where that is allowed, else by resting between steps",
    )  # fmt: skip


def idle_limits(arguments: argparse.Namespace) -> IdleLimits | None:
    """What --idle-only and its kin ask for. Errors: `ArgumentTypeError` for a limit without --idle-only."""
    given = [name for name in IDLE_OPTIONS if getattr(arguments, name) is not None]
    if not arguments.idle_only:
        if given:
            option = f"--{given[0].replace('_', '-')}"
            raise argparse.ArgumentTypeError(f"{option} says when a machine counts as idle: add --idle-only")
        return None
    gpu, cpu, input_s, after_s = (getattr(arguments, name) for name in IDLE_OPTIONS)
    return IdleLimits(
        gpu=DEFAULT.gpu if gpu is None else gpu, cpu=DEFAULT.cpu if cpu is None else cpu,
        input_s=DEFAULT.input_s if input_s is None else input_s,
        settle_s=DEFAULT.settle_s if after_s is None else after_s,
    )  # fmt: skip


def public_name(text: str) -> str:
    """A name that strangers will see."""
    try:
        return checked_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def share(text: str) -> float:
    """A part of the whole, given in percent, with or without the sign."""
    percent = _figure(text, "%")
    if not 0.0 <= percent <= 100.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of percent from 0 to 100")
    return percent / 100.0


def watts(text: str) -> float:
    """A power, with or without its unit."""
    power_w = _figure(text, "W")
    if not 0.0 < power_w <= MAX_WATTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of watts above 0 and up to {MAX_WATTS:g}")
    return power_w


def _figure(text: str, unit: str) -> float:
    try:
        return float(text.strip().removesuffix(unit))
    except ValueError:
        return math.nan
