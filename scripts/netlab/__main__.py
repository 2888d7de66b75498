"""`scripts/wan`: a wide area network on this machine for people. Arguments in, orders out; makes nothing itself."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from netlab import measure
from netlab.lab import Lab, LabError, enter_command, order
from netlab.namespace import why_not
from netlab.spec import SYNTAX, SpecError, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "SHOAL_WAN"
SETTINGS = ("rate=1Gbit rtt=5ms a b", "rate=100Mbit rtt=5ms a b", "rate=100Mbit rtt=100ms a b")
EXAMPLES = """\
Examples:
  scripts/wan up rate=100Mbit rtt=100ms a b home:inbound=no   stands up a network until Ctrl-C; then, elsewhere:
  scripts/wan up boot home:nat=yes pc@home laptop@home        two hosts behind one router that translates addresses
  scripts/wan exec a -- shoal bootstrap --host 11.0.1.1       runs a command on a host
  scripts/wan shell b                                         a shell on a host
  scripts/wan cut a,b                                         cuts a and b off from all others
  scripts/wan heal                                            mends every cut
  scripts/wan set b rate=5Mbit rtt=400ms                      changes a host's line
  scripts/wan run "rtt=5ms a b" -- my-script                  a network for as long as a command runs
  scripts/wan check                                           what this machine reaches, measured"""


def main() -> int:
    """Run one command line; the exit status."""
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments = _parser().parse_args(sys.argv[1:at], argparse.Namespace(command=sys.argv[at + 1 :]))
    try:
        status: int = arguments.run(arguments)
    except (SpecError, LabError) as error:
        sys.stderr.write(f"wan: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/wan", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=f"{SYNTAX}\n\n{EXAMPLES}",
        description="A wide area network on this machine: each host is a network namespace, and one process moves the "
        "packets between them with delay, rate, loss, jitter, firewalls and address translation. Needs root. The "
        "machine's own network is not touched, and nothing is left when it ends.",
    )  # fmt: skip
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _command(commands, _up, "up", "stand up a network until Ctrl-C", ("spec", "+"))
    _command(commands, _run, "run", "run a command while a network is up: run SPEC -- COMMAND", ("spec", "+"))
    _command(commands, _exec, "exec", "run a command on a host: exec HOST -- COMMAND", ("host", None))
    _command(commands, _shell, "shell", "a shell on a host", ("host", None))
    _command(commands, _cut, "cut", "cut hosts off from others (default: from all): cut a,b [c,d]", ("group", "+"))
    _command(commands, _heal, "heal", "mend every cut")
    _command(commands, _set, "set", "change a host's line: set HOST name=value ...", ("host", None), ("option", "+"))
    _command(commands, _status, "status", "hosts, addresses and packets so far, as JSON")
    _command(commands, _check, "check", "measure round trip, rate and loss between the first two hosts", ("spec", "*"))
    return parser


def _command(commands: object, run: object, name: str, text: str, *positional: tuple[str, str | None]) -> None:
    parser = commands.add_parser(name, help=text, description=text)  # type: ignore[attr-defined]
    parser.set_defaults(run=run)
    for argument, count in positional:
        parser.add_argument(argument, nargs=count, metavar=argument.upper())
    if run is _run:
        parser.add_argument("--on", metavar="HOST", help="run it on this host, not outside of the network")
    if run is not _check:
        parser.add_argument("--name", default=os.environ.get(NAME, "wan"), help="of the network (default %(default)s)")


def _spec(words: Sequence[str]) -> str:
    """A network from words, or from a file that holds them. Errors: `SpecError`, `LabError`."""
    text = " ".join(words)
    if len(words) == 1 and Path(words[0]).is_file():
        text = Path(words[0]).read_text(encoding="utf-8")
    parse(text)
    if reason := why_not():
        raise LabError(reason)
    return text


def _up(arguments: argparse.Namespace) -> int:
    with Lab(_spec(arguments.spec), arguments.name) as lab:
        for host, address in lab.hosts.items():
            public = lab.public[host]
            print(f"{host:<20} {address}" + (f" behind {public}" if public != address else ""), flush=True)
        sys.stderr.write("up; Ctrl-C takes it down\n")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.pause()
    return 0


def _run(arguments: argparse.Namespace) -> int:
    with Lab(_spec(arguments.spec), f"{arguments.name}-{os.getpid()}") as lab:
        prefix = lab.command(arguments.on) if arguments.on else []
        return _finish([*prefix, *_wanted(arguments)], {**os.environ, NAME: lab.name})


def _exec(arguments: argparse.Namespace) -> int:
    return _become(arguments, _wanted(arguments))


def _wanted(arguments: argparse.Namespace) -> list[str]:
    if not arguments.command:
        raise LabError("put the command last, after `--`")
    command: list[str] = arguments.command
    return command


def _shell(arguments: argparse.Namespace) -> int:
    os.environ["PS1"] = f"{arguments.host} \\w \\$ "
    return _become(arguments, [os.environ.get("SHELL", "/bin/sh")])


def _become(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    hosts = order(arguments.name, do="describe")["hosts"]
    if arguments.host not in hosts:
        raise LabError(f"there is no host {arguments.host!r}; there are {', '.join(hosts)}")
    os.environ[NAME] = arguments.name
    full = [*enter_command(hosts[arguments.host]["namespace"]), *command]
    os.execv(full[0], full)


def _cut(arguments: argparse.Namespace) -> int:
    groups = [group.split(",") for group in arguments.group]
    if len(groups) > 2:
        raise LabError("give one group of hosts, or two: scripts/wan cut a,b c,d")
    order(arguments.name, do="cut", left=groups[0], right=groups[1] if len(groups) == 2 else [])
    return 0


def _heal(arguments: argparse.Namespace) -> int:
    order(arguments.name, do="heal")
    return 0


def _set(arguments: argparse.Namespace) -> int:
    order(arguments.name, do="set", host=arguments.host, options=arguments.option)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    print(json.dumps({**order(arguments.name, do="describe"), "packets": order(arguments.name, do="stats")}, indent=2))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    specs = [" ".join(arguments.spec)] if arguments.spec else SETTINGS
    for number, text in enumerate(specs):
        with Lab(_spec([text]), f"check-{os.getpid()}-{number}") as lab:
            print(f"{text}\n  {_measured(lab)}", flush=True)
    return 0


def _measured(lab: Lab) -> str:
    a, b, *_ = [*lab.hosts, *lab.hosts]
    if a == b:
        raise LabError("checking takes two hosts")
    times = measure.round_trips(lab, a, b)
    before = lab.stats()["cpu_s"]
    rate = measure.rate(lab, a, b, 4.0)
    cpu = (lab.stats()["cpu_s"] - before) / 4.0
    lost = measure.loss(lab, a, b)
    middle, late = times[len(times) // 2], times[len(times) * 9 // 10]
    return (
        f"round trip {middle * 1e3:.2f} ms (nine of ten within {late * 1e3:.2f}), one TCP stream {rate / 1e6:.0f} "
        f"Mbit/s, {lost:.1%} of small packets lost, forwarder {cpu:.0%} of one core at that rate"
    )


def _finish(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command to its end. An interrupt is the command's to hear, and a terminal tells it without our help."""
    try:
        process = subprocess.Popen(command, env=environment)
    except OSError as error:
        raise LabError(f"{command[0]}: {error.strerror}") from error
    signal.signal(signal.SIGINT, lambda _number, _frame: None)
    signal.signal(signal.SIGTERM, lambda number, _frame: process.send_signal(number))
    return process.wait()


if __name__ == "__main__":
    sys.exit(main())
