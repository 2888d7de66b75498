"""`shoal doctor`: why does it not work? Looks at this machine and at a swarm, and says what is well and what to do."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from shoal.blocks.choices import BEST_DEVICE
from shoal.client.cli.checkup import machine, network
from shoal.client.cli.finding import Finding
from shoal.client.cli.terminal import quiet_libraries, run_async, write
from shoal.dht.arguments import Parser, add_join, port
from shoal.dht.errors import InviteError
from shoal.dht.starting import at_once
from shoal.dht.swarms import find_invite

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

EXAMPLE = "shoal doctor --join INVITE --port 4001"
SUMMARY = """\
Say what is well and what is not: Python, torch, the device and its memory, the network daemon and the port; and with
an invite the swarm: who answers, clocks, whether others can reach this machine, which blocks are served, versions.

Exits with 1 if something is broken, and says what to do. Notes stop nothing."""
MARKS = {"ok": "ok    ", "note": "note  ", "broken": "BROKEN"}


def doctor(argv: list[str]) -> int:
    """Say what is well here and in a swarm, and what to do about the rest."""
    arguments = _parse(argv)
    quiet_libraries()
    found = []
    with at_once():
        for finding in machine(arguments.device):
            found.append(finding)
            _show([finding], arguments)
    found += run_async(_look(arguments))
    broken = any(finding.state == "broken" for finding in found)
    if arguments.json:
        write(json.dumps({"ok": not broken, "checks": [asdict(finding) for finding in found]}) + "\n")
    elif broken:
        write("\nSomething is broken; see above.\n")
    return int(broken)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser("doctor", SUMMARY, EXAMPLE)
    add_join(parser, needed=False, help_text="look at this swarm too: an invite or a kept name (default: $SHOAL_JOIN)")
    parser.add_argument("--model", metavar="M", help="a directory, a hub name or demo (default: the invite's model)")
    parser.add_argument(
        "--device", default=BEST_DEVICE, metavar="D", help="look at this one (default auto: that a peer would use)"
    )
    parser.add_argument("--host", default="", metavar="A", help="address that a peer would listen on")
    parser.add_argument("--port", type=port, default=0, metavar="N", help="TCP port that a peer would listen on")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, at the end")
    return parser.parse_args(argv)


async def _look(arguments: argparse.Namespace) -> list[Finding]:
    found = await network(arguments.host, arguments.port)
    _show(found, arguments)
    if arguments.join is None or any(finding.state == "broken" for finding in found):
        return found
    swarm = await _swarm(arguments)
    _show(swarm, arguments)
    return found + swarm


async def _swarm(arguments: argparse.Namespace) -> list[Finding]:
    from shoal.client.cli.status import local_shape
    from shoal.client.cli.swarm_checkup import swarm
    from shoal.dht.host import HostConfig, listen_for
    from shoal.dht.threads import in_thread

    try:
        invite = find_invite(arguments.join)
    except InviteError as error:
        return [Finding("invite", "broken", str(error), "ask for the invite again and copy it whole")]
    kind = "private" if invite.secret else "public"
    readable = Finding("invite", "ok", f"it leads to the {kind} swarm {invite.swarm!r} of {invite.model}")
    config = HostConfig(listen=arguments.host or listen_for(invite.peers), port=arguments.port)
    shape = await in_thread(local_shape, arguments.model, invite.model)  # fetched, where it is a model of the hub
    return [readable, *await swarm(invite, config, *shape)]


def _show(found: Iterable[Finding], arguments: argparse.Namespace) -> None:
    if arguments.json:
        return
    for finding in found:
        write(f"{MARKS[finding.state]}  {finding.name:<10} {finding.text}\n")
        if finding.advice:
            write(f"{'':<20}{finding.advice}\n")
