"""`shoal api`: arguments in, a server up until it is told to leave; knows no HTTP."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from shoal.blocks.choices import DTYPES
from shoal.blocks.formats import FORMS
from shoal.client.api.listening import is_loopback, listen
from shoal.client.api.options import ApiOptions, Doors
from shoal.client.cli.arguments import add_speculation
from shoal.client.cli.complaint import CommandError
from shoal.client.cli.terminal import quiet_libraries, run_async
from shoal.dht.arguments import Parser, add_join, file, port, seconds, size, whole
from shoal.dht.starting import at_once
from shoal.dht.swarms import find_invite

if TYPE_CHECKING:
    import argparse

    from shoal.client.api.serve import ServeConfig
    from shoal.dht.invite import Invite

KEY_VARIABLE = "SHOAL_API_KEY"
EXAMPLE = "shoal api --model demo --join INVITE --port 8000"
SUMMARY = """\
Serve a swarm's model under OpenAI's HTTP interface, until Ctrl-C.

The URL is printed on stdout once it answers. Without an API key it listens on this machine only. Requests under a name
(a Host header) other than localhost, this machine's own or those of --allow-host are refused, as are pages of other
sites than those of --allow-origin: so no page that you happen to open can use it."""


def api(argv: list[str]) -> int:
    """Serve a swarm's model under OpenAI's HTTP interface."""
    arguments = _parse(argv)
    keys = _keys(arguments)
    _check_exposure(arguments, keys)
    doors, invite = _doors(arguments, keys), find_invite(arguments.join)
    with listen(arguments.host, arguments.port) as listening:
        quiet_libraries()
        with at_once():
            from shoal.client.api.serve import serve

        run_async(serve(_config(arguments, invite, doors), listening))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser("api", SUMMARY, EXAMPLE)
    add_join(parser)
    parser.add_argument("--model", metavar="M", help="a directory, a hub name or demo (default: the invite's model)")
    parser.add_argument("--revision", metavar="R", help="the hub's branch, tag or commit, or a directory's fingerprint")
    parser.add_argument("--name", metavar="NAME", help="what requests call the model (default: as --model)")
    parser.add_argument("--host", default="127.0.0.1", metavar="A", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=port, default=8000, metavar="N", help="default %(default)s; 0 is any free one")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, once the server answers")
    _add_doors(parser)
    _add_limits(parser)
    return parser.parse_args(argv)


def _add_doors(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who may ask")
    group.add_argument(
        "--api-key", action="append", default=[], metavar="KEY",
        help=f"may be repeated; ${KEY_VARIABLE} or a file keeps it out of the list of processes",
    )  # fmt: skip
    group.add_argument("--api-keys-file", type=file, metavar="FILE", help="one key a line; # begins a comment")
    group.add_argument("--no-api-key", action="store_true", help="let everybody in who reaches --host")
    group.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name under which this server is asked"
    )
    group.add_argument(
        "--allow-origin", action="append", default=[], metavar="URL",
        help="a site whose pages may ask, as https://example.org; * is all",
    )  # fmt: skip


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--max-in-flight", type=whole(1), default=64, metavar="N", help="answers made at a time (default %(default)s)"
    )
    group.add_argument("--max-body", type=size, default=4 << 20, metavar="SIZE", help="of a request (default 4MiB)")
    group.add_argument(
        "--default-max-tokens", type=whole(1), default=2048, metavar="N",
        help="of an answer whose request sets no limit (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--read-timeout", type=seconds, default=20.0, metavar="SECONDS",
        help="a request must have arrived by then (default 20)",
    )  # fmt: skip
    group.add_argument(
        "--write-timeout", type=seconds, default=60.0, metavar="SECONDS",
        help="a reader that takes no bytes for so long is cut off (default 60)",
    )  # fmt: skip
    group.add_argument(
        "--grace", type=seconds, default=30.0, metavar="SECONDS", help="to finish what runs when leaving (default 30)"
    )
    group.add_argument("--wait", type=seconds, default=0.0, metavar="SECONDS", help="wait so long for missing blocks")
    group.add_argument("--dtype", choices=DTYPES, help="of the ends and on the wire (default: the model's own)")
    group.add_argument(
        "--activations", choices=("auto", *FORMS), default="auto",
        help="how hidden states travel (default auto: as they are, or 16-bit ones as int8 over slow lines)",
    )  # fmt: skip
    add_speculation(group)


def _keys(arguments: argparse.Namespace) -> frozenset[str]:
    keys = [*arguments.api_key, *os.environ.get(KEY_VARIABLE, "").split()]
    if path := arguments.api_keys_file:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise CommandError(f"{path} is not text; write one API key a line") from None
        found = [line for line in (line.partition("#")[0].strip() for line in lines) if line]
        if not found:
            raise CommandError(f"{path} holds no API key; write one a line")
        keys += found
    if any(not key or key.split() != [key] for key in keys):
        raise CommandError("an API key must have no spaces and must not be empty")
    return frozenset(keys)


def _check_exposure(arguments: argparse.Namespace, keys: frozenset[str]) -> None:
    if keys or arguments.no_api_key or is_loopback(arguments.host):
        return
    raise CommandError(
        f"--host {arguments.host} lets other machines in, and there is no API key: set ${KEY_VARIABLE} or give "
        "--api-keys-file FILE, or --no-api-key if everybody may use it"
    )


def _doors(arguments: argparse.Namespace, keys: frozenset[str]) -> Doors:
    own = socket.gethostname().lower()
    for origin in arguments.allow_origin:
        if origin not in ("*", "null") and not _is_origin(origin):
            raise CommandError(f"--allow-origin {origin[:80]!r} is no origin; write it as https://example.org")
    return Doors(
        keys,
        frozenset({*arguments.allow_host, arguments.host, own, f"{own}.local"}),
        frozenset(arguments.allow_origin),
    )


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:  # brackets that hold no address
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc) and not parts.path


def _config(arguments: argparse.Namespace, invite: Invite, doors: Doors) -> ServeConfig:
    from shoal.client.api.serve import ServeConfig

    model = arguments.model or invite.model
    options = ApiOptions(
        name=arguments.name or model,
        doors=doors,
        max_in_flight=arguments.max_in_flight,
        max_body=arguments.max_body,
        read_s=arguments.read_timeout,
        write_s=arguments.write_timeout,
        default_tokens=arguments.default_max_tokens,
        wait_s=arguments.wait,
        activations=arguments.activations,
        speculate=arguments.speculate,
    )
    return ServeConfig(
        model, invite, options, arguments.revision, arguments.dtype, arguments.grace, json=arguments.json
    )
