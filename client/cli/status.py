"""`shoal status`: looks a swarm up in its directory and shows it, once or again and again; opens no session."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.client.cli.terminal import quiet_libraries, run_async, tell, write
from shoal.dht.arguments import Parser, add_join
from shoal.dht.starting import at_once
from shoal.dht.swarms import find_invite

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from shoal.dht.invite import Invite
    from shoal.dht.record import Record
    from shoal.routing.view import View

WATCH_S = 3.0
MAX_BLOCKS = 1 << 16
EXAMPLE = "shoal status --join INVITE --watch"
SUMMARY = """\
Who serves which blocks of a swarm's model, how fast, and what nobody serves.

How many blocks there are is read from the model's config if it is here (`demo` always is), else from what the peers
announce: then a gap after the last announced block cannot be seen. --model names the model to read."""


def status(argv: list[str]) -> int:
    """Show who serves which blocks, how fast, and what is missing."""
    arguments = _parse(argv)
    invite = find_invite(arguments.join)
    quiet_libraries()
    with at_once():
        import shoal.dht.directory
        import shoal.dht.host  # noqa: F401
    n_blocks, revision = local_shape(arguments.model, invite.model)
    tell("joining the swarm")
    run_async(_look(invite, arguments, n_blocks, revision))
    return 0


def view_of(records: Sequence[Record], n_blocks: int | None, revision: str | None, now: float) -> View:
    """The peers of one revision (None: the one that most of them serve) as a view of `n_blocks` blocks (None: as many
    as they announce)."""
    from shoal.routing.announcement import AnnouncementError, decode
    from shoal.routing.view import View, fold

    announcements = []
    for record in records:
        try:
            announcements.append(decode(record, n_blocks or MAX_BLOCKS))
        except AnnouncementError:
            continue  # one bad record hides no other
    common = Counter(peer.revision for peer in announcements).most_common(1)
    wanted = revision or (common[0][0] if common else None)
    served = [peer for peer in announcements if peer.revision == wanted]
    return fold(View(n_blocks or max((peer.stop for peer in served), default=0)), served, now)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser("status", SUMMARY, EXAMPLE)
    add_join(parser)
    parser.add_argument("--model", metavar="M", help="a directory, a hub name or demo (default: the invite's model)")
    parser.add_argument("--json", action="store_true", help="one JSON object (with --watch one a line)")
    parser.add_argument("--watch", action="store_true", help=f"look again every {WATCH_S:.0f} seconds, until Ctrl-C")
    return parser.parse_args(argv)


def local_shape(named: str | None, invited: str) -> tuple[int | None, str | None]:
    """Number of blocks and revision of a model whose config is on this machine, fetching nothing but for `--model`."""
    if named is None and invited != "demo" and not Path(invited).is_dir():
        return None, None
    with at_once():
        from shoal.blocks.checkpoint import resolve
        from shoal.blocks.spec import spec_of

    checkpoint = resolve(named or invited, wanted=lambda _: False)
    return spec_of(checkpoint).n_blocks, checkpoint.revision


async def _look(invite: Invite, arguments: argparse.Namespace, n_blocks: int | None, revision: str | None) -> None:
    from shoal.dht.directory import open_directory, watch
    from shoal.dht.host import HostConfig, open_host
    from shoal.dht.identity import Identity

    identity = Identity.generate()
    config = HostConfig(identity=identity, bootstrap=invite.peers)
    with _screen(invite, arguments) as show:
        async with (
            open_host(config) as host,
            open_directory(host, identity, invite, revision or "", guest=True) as directory,
        ):
            if not arguments.watch:
                show(view_of(await directory.lookup(), n_blocks, revision, time.time()))
                return
            async for records in watch(directory, WATCH_S):
                show(view_of(records, n_blocks, revision, time.time()))


@contextmanager
def _screen(invite: Invite, arguments: argparse.Namespace) -> Iterator[Callable[[View], None]]:
    """Shows views: JSON lines, a picture that stays in its place (--watch on a terminal), or plain text."""
    from rich.live import Live
    from shoal.client.cli.board import as_json, board, console

    title = f"{invite.swarm}: {invite.model}"
    screen = console()
    if arguments.json:
        yield lambda view: write(json.dumps(as_json(view)) + "\n")
    elif arguments.watch and screen.is_terminal:
        with Live(console=screen, auto_refresh=False) as live:
            yield lambda view: live.update(board(title, view), refresh=True)
    else:
        yield lambda view: screen.print(board(title, view))
