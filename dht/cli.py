"""`shoal bootstrap` and `shoal invite`: arguments in, a result on stdout. No logic."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import logging
import secrets
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.dht.arguments import Parser, echoed, file, port
from shoal.dht.errors import HostError
from shoal.dht.invite import MAX_PEERS, Invite
from shoal.dht.leaving import on_leave
from shoal.dht.starting import at_once
from shoal.dht.swarms import find_invite

if TYPE_CHECKING:
    from shoal.dht.host import Host
    from shoal.dht.identity import Identity

DEFAULT_SWARM = "default"
MODEL_HELP = "the swarm's model: a directory, a hub name or demo"
EXAMPLE_MADDR = "/ip4/192.0.2.1/tcp/4001/p2p/12D3Koo..."


def bootstrap(argv: list[str]) -> int:
    """Run a node that others join a swarm through.

    Until SIGINT, SIGTERM or the terminal's end. Errors: `DhtError`.
    """
    options = _bootstrap_options().parse_args(argv)
    Invite(options.swarm, options.model, ())  # complains of the names before anything is started
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    with at_once():
        import shoal.dht.host
        import shoal.dht.node  # noqa: F401
    asyncio.run(_serve(options))
    return 0


def invite(argv: list[str]) -> int:
    """Print the token that lets others join a swarm.

    Errors: `InviteError`.
    """
    parser = _invite_options()
    options = parser.parse_args(argv)
    if options.join is not None:
        if options.model or options.private or options.swarm != DEFAULT_SWARM:
            parser.error("--join keeps the model, name and secret of that swarm: leave --model, --swarm, --private out")
        known = find_invite(options.join)
        token = replace(known, peers=tuple(options.peers or known.peers)).encode()
    else:
        if not options.peers or not options.model:
            parser.error("give --peers and --model, or --join for the invite of a swarm that there is")
        secret = secrets.token_bytes(32) if options.private else None
        token = Invite(options.swarm, options.model, tuple(options.peers), secret).encode()
    print(json.dumps({"invite": token}) if options.json else token)
    return 0


def _bootstrap_options() -> argparse.ArgumentParser:
    parser = Parser(
        "bootstrap",
        "Run a node that others join a swarm through, and print its addresses and the invite, until Ctrl-C.",
        "shoal bootstrap --host 0.0.0.0 --port 4001 --identity bootstrap.key",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="A", help="address to listen on (default %(default)s; 0.0.0.0 is all)"
    )
    parser.add_argument(
        "--port", type=port, default=0, metavar="N", help="TCP port to listen on (default: any free one)"
    )
    parser.add_argument("--identity", type=file, metavar="FILE", help="key file; made if absent (default: a new one)")
    _add_swarm_options(parser, default_model="demo")
    return parser


def _invite_options() -> argparse.ArgumentParser:
    parser = Parser(
        "invite",
        "Print the token that lets others join a swarm.",
        f"shoal invite --model demo --peers {EXAMPLE_MADDR}",
    )
    parser.add_argument("--peers", nargs="+", metavar="MADDR", help="addresses of bootstrap nodes")
    parser.add_argument("--join", metavar="INVITE", help="of this swarm (an invite or a kept name), with other --peers")
    _add_swarm_options(parser, default_model=None)
    return parser


def _add_swarm_options(parser: argparse.ArgumentParser, default_model: str | None) -> None:
    parser.add_argument(
        "--model",
        type=_model,
        default=default_model,
        metavar="M",
        help=f"{MODEL_HELP} (default {default_model})" if default_model else MODEL_HELP,
    )
    parser.add_argument(
        "--swarm", default=DEFAULT_SWARM, metavar="NAME", help="name of the swarm (default: %(default)s)"
    )
    parser.add_argument(
        "--private", action="store_true", help="put a secret into the invite: only its holders take part"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _model(text: str) -> str:
    """No name on the hub has spaces; a folder may."""
    if len(text.split()) > 1 and not Path(text).expanduser().exists():
        raise argparse.ArgumentTypeError(f"{echoed(text)} is neither a hub name nor a directory here, nor demo")
    return text


async def _serve(options: argparse.Namespace) -> None:
    from shoal.dht.host import HostConfig, open_host
    from shoal.dht.node import open_node

    stop = asyncio.Event()
    on_leave(stop.set)
    config = HostConfig(identity_path=options.identity, listen=options.host, port=options.port, reachability="public")
    async with open_host(config) as host, open_node(host):
        _report(options, host)
        async with asyncio.TaskGroup() as tasks:
            waits = [tasks.create_task(event.wait()) for event in (stop, host.died)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        if not stop.is_set():
            raise HostError("The libp2p daemon has died; start the bootstrap node again.")


def _report(options: argparse.Namespace, host: Host) -> None:
    """Print where the node is and the invite to it."""
    reachable = [maddr for maddr in host.maddrs if "/127.0.0.1/" not in maddr and "/::1/" not in maddr]
    maddrs = (reachable or list(host.maddrs))[:MAX_PEERS]
    secret = _secret_of(host.identity, options.swarm, options.model) if options.private else None
    token = Invite(options.swarm, options.model, tuple(maddrs), secret).encode()
    if options.json:
        print(json.dumps({"invite": token, "maddrs": maddrs}), flush=True)
    else:
        print(*maddrs, f"invite: {token}", sep="\n", flush=True)


def _secret_of(identity: Identity, swarm: str, model: str) -> bytes:
    """A private swarm's secret that follows from the node's key, so that a restart gives the same invite."""
    signature = identity.sign(b"shoal swarm secret v1\x00" + f"{len(swarm)} {swarm} {model}".encode())
    return hashlib.sha256(signature).digest()
