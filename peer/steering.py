"""`shoal peers`, `shoal pause`, `shoal resume`: what runs on this machine and whether it takes sessions. No asyncio."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from shoal.dht.arguments import Parser, seconds
from shoal.peer.config import PeerError
from shoal.peer.sockets import ANSWER_S, ask, running

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

HEAD = ("peer", "name", "state", "model", "blocks", "sessions", "served", "tokens", "tokens/s", "up")
LEAST_ID_CHARS = 4
PATIENCE_S = 3700.0  # a pause is answered when the sessions have gone; the peer itself says when it is enough
PEERS = """\
The peers that you run on this machine: state, blocks, whom they served and how fast.

tokens/s is the average of about the last ten seconds; a token counts on every peer that it passes."""
PAUSE = """\
Stop taking sessions without leaving: running ones move to other peers, what nobody takes over in time is ended, and the
weights stay loaded, so that `shoal resume` serves again at once.

--peer takes a peer's id, the last characters of it as they are shown, or its public name. With one peer on this
machine it is not needed."""
RESUME = """\
Take sessions again after `shoal pause`. Nothing is loaded anew."""


def peers(argv: list[str]) -> int:
    """Show the peers that run on this machine."""
    parser = Parser("peers", PEERS, "shoal peers")
    parser.add_argument("--json", action="store_true", help="one JSON object a peer and line")
    arguments = parser.parse_args(argv)
    states = [state for _, state in _found()]
    if arguments.json:
        _print_json(states)
    elif states:
        _print_table(states)
    else:
        sys.stdout.write("no peer of yours runs on this machine\n")
    return 0


def pause(argv: list[str]) -> int:
    """Stop taking sessions at a running peer, without leaving."""
    parser = _parser("pause", PAUSE)
    parser.add_argument(
        "--drain", type=seconds, metavar="SECONDS", help="time for running sessions to move (default: the peer's own)"
    )
    arguments = parser.parse_args(argv)
    return _steer(arguments, {"do": "pause", "drain_s": arguments.drain})


def resume(argv: list[str]) -> int:
    """Take sessions again at a paused peer."""
    return _steer(_parser("resume", RESUME).parse_args(argv), {"do": "resume"})


def chosen(found: Sequence[tuple[Path, dict[str, Any]]], named: str | None) -> tuple[Path, dict[str, Any]]:
    """The one peer that is meant. Errors: `PeerError` if it is none or several."""
    if not found:
        raise PeerError("no peer of yours runs on this machine")
    fitting = [entry for entry in found if named is None or _is_called(entry[1], named)]
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(_name(state) for _, state in (fitting or found))
    if not fitting:
        raise PeerError(f"no peer here is called {named!r}; there is {there}")
    raise PeerError(f"several peers could be meant ({there}): say which with --peer, or --all")


def _parser(command: str, summary: str) -> argparse.ArgumentParser:
    parser = Parser(command, summary, f"shoal {command} --peer alice")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--peer", metavar="ID", help="which of your peers, if several run here")
    which.add_argument("--all", action="store_true", help="every peer of yours on this machine")
    parser.add_argument("--json", action="store_true", help="how the peer is afterwards, as one JSON object a line")
    return parser


def _steer(arguments: argparse.Namespace, request: dict[str, Any]) -> int:
    found = _found()
    meant = found if arguments.all and found else [chosen(found, arguments.peer)]
    for path, before in meant:
        after = ask(path, request, PATIENCE_S)
        if arguments.json:
            _print_json([after])
        else:
            sys.stdout.write(f"{_name(before)}: {sentence(after)}\n")
            sys.stdout.flush()
    return 0


def sentence(state: dict[str, Any]) -> str:
    """How a peer is after it was told something."""
    if state["state"] == "loading" and state["why"]:
        return "still loading; it will not take sessions then"
    if state["state"] not in ("paused", "pausing"):
        return str(state["state"])
    if "moved" not in state or not state["moved"] + state["ended"]:
        return f"{state['state']} ({'; '.join(state['why'])})"
    ended = f", {_count(state['ended'], 'session')} ended: nobody took it over" if state["ended"] else ""
    return f"{state['state']}; {_count(state['moved'], 'session')} went on elsewhere in {state['took_s']:.1f} s{ended}"


def _found() -> list[tuple[Path, dict[str, Any]]]:
    """All peers of this user here. One that does not answer is named on stderr and hides no other."""
    found = []
    for path in running():
        try:
            found.append((path, ask(path, {"do": "state"}, ANSWER_S)))
        except PeerError as error:
            sys.stderr.write(f"shoal: {error}\n")
    return found


def _is_called(state: dict[str, Any], named: str) -> bool:
    end = named.removeprefix("…")
    return named == state["name"] or (len(end) >= LEAST_ID_CHARS and state["peer"].endswith(end))


def _name(state: dict[str, Any]) -> str:
    end = f"…{state['peer'][-6:]}"
    return f"{end} ({state['name']})" if state["name"] else end


def _print_json(states: Sequence[dict[str, Any]]) -> None:
    sys.stdout.writelines(json.dumps(state) + "\n" for state in states)
    sys.stdout.flush()


def _print_table(states: Sequence[dict[str, Any]]) -> None:
    rows = [HEAD, *(_row(state) for state in states)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")
    for state in states:
        if state["why"]:
            sys.stdout.write(f"…{state['peer'][-6:]}: {'; '.join(state['why'])}\n")


def _row(state: dict[str, Any]) -> tuple[str, ...]:
    blocks = state["blocks"]
    return (
        f"…{state['peer'][-6:]}", state["name"] or "-", state["state"], state["model"],
        f"{blocks[0]}:{blocks[1]}" if blocks else "-", str(state["sessions"]), str(state["sessions_served"]),
        str(state["tokens_served"]), f"{state['tokens_per_s']:.1f}", _duration(state["uptime_s"]),
    )  # fmt: skip


def _duration(seconds_up: float) -> str:
    minutes, whole_s = divmod(int(seconds_up), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole_s} s" if minutes else f"{whole_s} s"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
