"""`shoal plan`: arguments in, a plan in words or as JSON on stdout, what goes on on stderr. No logic."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.blocks.choices import BEST_DEVICE, DEVICES, DTYPES, KV_DTYPES, QUANTIZATIONS
from shoal.dht.arguments import Parser, add_join, size, whole
from shoal.dht.starting import at_once
from shoal.dht.swarms import VARIABLE, find_invite

if TYPE_CHECKING:
    import argparse

    from shoal.dht.invite import Invite
    from shoal.peer.plan import Held, Shape, Swarmed, Terms, Work
    from shoal.routing.view import View

EXAMPLE = "shoal plan org/model --join home --device cuda --quant nf4"
SUMMARY = """\
Would a model run on this machine, or in a swarm, how fast, and what would this machine add to that swarm?

Reads the model's config and no weights. One block with made-up weights is timed here for each quantization; what
is measured and what is assumed stands below the figures."""
KINDS = ("none", "int8", "nf4")


@dataclass(frozen=True)
class Plan:
    """All that was found out."""

    shape: Shape
    terms: Terms
    work: Work
    held: tuple[Held, ...]
    swarmed: Swarmed | None
    invite: Invite | None


def plan(argv: list[str]) -> int:
    """Say whether a model would run here or in a swarm, and how fast."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.model is None and arguments.join is None:
        parser.error(f"name a model, or a swarm with --join (or {VARIABLE})")
    invite = None if arguments.join is None else find_invite(arguments.join)
    with at_once():  # torch's import takes seconds
        from shoal.blocks import span  # noqa: F401
        from shoal.peer.plan import open_shape
        from shoal.peer.plan_words import as_json, words

        arguments.device = _device(arguments.device)
    shape = open_shape(arguments.model or _model_of(invite), arguments.revision)
    found = asyncio.run(_plan(arguments, invite, shape))

    sys.stdout.write(json.dumps(as_json(found)) + "\n" if arguments.json else words(found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser("plan", SUMMARY, EXAMPLE)
    parser.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="a hub name, a directory, a config.json or demo (default: the swarm's model)",
    )  # fmt: skip
    add_join(parser, needed=False)
    parser.add_argument("--revision", metavar="R", help="the hub's branch, tag or commit")
    parser.add_argument("--device", default=BEST_DEVICE, metavar="D", help=DEVICES)
    parser.add_argument("--dtype", choices=DTYPES, help="of activations and KV (default: the checkpoint's own)")
    parser.add_argument(
        "--quant", choices=QUANTIZATIONS, action="append", help=f"look at this one only (default: {', '.join(KINDS)})"
    )
    parser.add_argument("--kv-dtype", choices=KV_DTYPES, default="auto", help="int8 holds about twice the tokens")
    parser.add_argument("--vram", type=size, metavar="SIZE", help="use no more of the device than this")
    parser.add_argument(
        "--prompt-tokens", type=whole(1), default=512, metavar="N", help="of the conversation to plan (default 512)"
    )
    parser.add_argument("--new-tokens", type=whole(1), default=512, metavar="N", help="of its answer (default 512)")
    parser.add_argument("--no-measure", action="store_true", help="time no block: memory only, in a second")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


async def _plan(arguments: argparse.Namespace, invite: Invite | None, shape: Shape) -> Plan:
    from shoal.peer.plan import Terms, Work, hold, swarm

    work = Work(arguments.prompt_tokens, arguments.new_tokens)
    held, base = [], Terms(arguments.device, arguments.dtype, arguments.kv_dtype, arguments.vram)
    for kind in arguments.quant or KINDS:
        terms = Terms(base.device, base.dtype, base.kv_dtype, base.vram, kind)
        if not arguments.no_measure:
            _tell(f"timing one block with its weights as {kind}")
        held.append(await hold(shape, terms, timed=not arguments.no_measure))
    swarmed = None
    if invite is not None:
        _tell("looking at the swarm")
        swarmed = swarm(shape, *await _look(invite, shape), held, work)
    return Plan(shape, base, work, tuple(held), swarmed, invite)


async def _look(invite: Invite, shape: Shape) -> tuple[View, dict[str, float]]:
    """The swarm now, and how far its peers are. Errors: `HostError`, `JoinError`."""
    from shoal.dht.directory import open_directory
    from shoal.dht.host import HostConfig, listen_for, open_host
    from shoal.dht.identity import Identity
    from shoal.peer.greet import round_trips
    from shoal.peer.plan import view_of
    from shoal.peer.transport import P2PTransport

    identity = Identity.generate()
    config = HostConfig(identity=identity, listen=listen_for(invite.peers), bootstrap=invite.peers)
    async with (
        open_host(config) as host,
        open_directory(host, identity, invite, shape.revision or "", guest=True) as directory,
    ):
        view = view_of(await directory.lookup(), shape, time.time())
        return view, await round_trips(P2PTransport(host), view.peers)


def _device(name: str) -> str:
    """One that is there."""
    from shoal.blocks.devices import check_device, choose_device

    if name == BEST_DEVICE:
        chosen = choose_device()
        name = chosen.name
        if chosen.instead:
            _tell(chosen.why)
    check_device(name)
    return name


def _model_of(invite: Invite | None) -> str:
    return invite.model if invite is not None else ""


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
