"""`shoal swarms`: arguments in, the list of kept invites changed or shown. No logic."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from shoal.dht.arguments import Parser, add_subcommands
from shoal.dht.invite import Invite
from shoal.dht.swarms import KeptSwarms, check_name

if TYPE_CHECKING:
    import argparse

SUMMARY = """\
Keep invites under names of your own: `--join NAME` then stands for the invite in every command, and
join="NAME" in Python. SHOAL_JOIN=NAME in the environment makes one of them the default.

They are in a file that only you can read, since an invite to a private swarm holds its secret."""
EXAMPLE = "shoal swarms add home INVITE; shoal status --join home"


def swarms(argv: list[str]) -> int:
    """Keep invites under names, so that --join NAME works.

    Errors: `InviteError`.
    """
    options = _parser().parse_args(argv)
    lines = {"add": _add, "list": _list, "show": _show, "remove": _remove}[options.action](options, KeptSwarms())
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser("swarms", SUMMARY, EXAMPLE)
    actions = add_subcommands(parser)
    add = actions("add", "Keep an invite under a name.", "shoal swarms add home INVITE")
    add.add_argument("name", metavar="NAME", help="what you want to call the swarm")
    add.add_argument("invite", metavar="INVITE", help="its invite; - reads it from stdin, out of sight of other users")
    add.add_argument("--replace", action="store_true", help="also if the name stands for another swarm so far")
    shown = actions("list", "Name the swarms that are kept.", "shoal swarms list --json")
    shown.add_argument("--names", action="store_true", help="their names and nothing else, one a line")
    _add_json(shown)
    show = actions("show", "Say where a name leads.", "shoal swarms show home")
    _add_name(show)
    show.add_argument("--invite", action="store_true", help="print the invite itself, with the secret if it has one")
    _add_json(show)
    _add_name(actions("remove", "Forget an invite.", "shoal swarms remove home"))
    return parser


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="one that `shoal swarms list` shows")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON on stdout (an invite itself only where asked for)")


def _add(options: argparse.Namespace, kept: KeptSwarms) -> list[str]:
    name = check_name(options.name)
    invite = Invite.parse(sys.stdin.read() if options.invite == "-" else options.invite)
    kept.add(name, invite, replace=options.replace)
    return [f"{name}: {_words(invite)}"]


def _list(options: argparse.Namespace, kept: KeptSwarms) -> list[str]:
    found = kept.all()
    if options.json:
        return [json.dumps([{"name": name, **_facts(invite)} for name, invite in found.items()])]
    if options.names:
        return list(found)
    width = max(map(len, found), default=0)
    if not found:
        sys.stderr.write("no swarm is kept yet: shoal swarms add NAME INVITE\n")
    return [f"{name:<{width}}  {_words(invite)}" for name, invite in found.items()]


def _show(options: argparse.Namespace, kept: KeptSwarms) -> list[str]:
    invite = kept.get(options.name)
    secret = {"invite": invite.encode()} if options.invite else {}
    if options.json:
        return [json.dumps({"name": options.name, **_facts(invite), **secret})]
    return [*secret.values()] or [f"{options.name}: {_words(invite)}", *(f"  {maddr}" for maddr in invite.peers)]


def _remove(options: argparse.Namespace, kept: KeptSwarms) -> list[str]:
    kept.remove(options.name)
    return []


def _facts(invite: Invite) -> dict[str, object]:
    return {
        "swarm": invite.swarm, "model": invite.model, "private": invite.secret is not None, "peers": list(invite.peers),
    }  # fmt: skip


def _words(invite: Invite) -> str:
    kind = "private" if invite.secret else "public"
    return f"the {kind} swarm {invite.swarm!r} of {invite.model}"
