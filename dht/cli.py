"""`shoal bootstrap` and `shoal invite`: arguments in, a result on stdout, an error as one line on stderr. No logic."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import logging
import secrets
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.dht.errors import DhtError, HostError
from shoal.dht.invite import MAX_PEERS, Invite

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.dht.host import Host
    from shoal.dht.identity import Identity

OK, FAILED = 0, 1
EXAMPLE_MADDR = "/ip4/192.0.2.1/tcp/4001/p2p/12D3Koo..."


def bootstrap(argv: list[str]) -> int:
    """Run a bootstrap node until SIGINT or SIGTERM; 0, or 1 after one line on stderr."""
    options = _bootstrap_options().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    return _told(lambda: asyncio.run(_serve(options)))


def invite(argv: list[str]) -> int:
    """Print an invite token; 0, or 1 after one line on stderr."""
    options = _invite_options().parse_args(argv)

    def make() -> None:
        secret = secrets.token_bytes(32) if options.private else None
        token = Invite(options.swarm, options.model, tuple(options.peers), secret).encode()
        print(json.dumps({"invite": token}) if options.json else token)

    return _told(make)


def _bootstrap_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shoal bootstrap",
        description="Run a node that others join a swarm through, and print the invite to it.",
        epilog="example: shoal bootstrap --host 0.0.0.0 --port 4001 --identity bootstrap.key",
    )
    parser.add_argument("--host", default="127.0.0.1", help="IP address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="TCP port (default: any free one)")
    parser.add_argument("--identity", type=Path, help="key file, made if absent; keeps addresses the same")
    _add_swarm_options(parser, default_model="demo")
    return parser


def _invite_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shoal invite",
        description="Print the token that lets others join a swarm.",
        epilog=f"example: shoal invite --model demo --peers {EXAMPLE_MADDR}",
    )
    parser.add_argument("--peers", nargs="+", required=True, metavar="MADDR", help="addresses of bootstrap nodes")
    _add_swarm_options(parser, default_model=None)
    return parser


def _add_swarm_options(parser: argparse.ArgumentParser, default_model: str | None) -> None:
    parser.add_argument("--model", default=default_model, required=default_model is None, help="model the swarm serves")
    parser.add_argument("--swarm", default="default", help="name of the swarm (default: %(default)s)")
    parser.add_argument(
        "--private", action="store_true", help="put a secret into the invite: only its holders take part"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


async def _serve(options: argparse.Namespace) -> None:
    from shoal.dht.host import HostConfig, open_host
    from shoal.dht.node import open_node

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
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


def _told(work: Callable[[], None]) -> int:
    """Run `work`; an error that the user may meet becomes one line on stderr."""
    try:
        work()
    except DhtError as error:
        print(f"shoal: {error}", file=sys.stderr)
        return FAILED
    return OK
