"""A swarm on the terminal: who serves what, how fast, and what nobody serves. Looks at a view; asks nobody."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from shoal.client.cli.terminal import short, spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import ConsoleOptions, RenderResult
    from shoal.routing.announcement import Announcement
    from shoal.routing.view import View

BLOCKS_PER_LINE = 16
MOST_NAME = 20  # characters of a peer's name
# Headings from left to right; where the terminal is narrow, those with the greatest number give way first.
LEFT = {"peer": 0, "name": 1, "state": 0, "reach": 4, "blocks": 0}
RIGHT = {"quant": 2, "ms/token": 0, "prompt/s": 5, "sessions": 1, "KV free": 3, "expires": 6}
PLAIN_WIDTH = 160
COLOURS = ("bold red", "yellow", "green")


@dataclass(frozen=True)
class Board:
    """Peers, coverage and gaps of a view, as wide as the console is."""

    title: str
    view: View

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, view = options.max_width, self.view
        yield from (Text(self.title, style="bold"), Text(), _peers(view.peers, view.at, width), Text())
        yield from (_coverage(view, width), Text(), _gaps(view))


def board(title: str, view: View) -> Board:
    """What `shoal status` shows of a view."""
    return Board(title, view)


def console() -> Console:
    """On a terminal colours and its width; elsewhere plain lines that are not cut. Strangers' names are not markup."""
    made = Console(highlight=False, markup=False, emoji=False)
    if made.is_terminal:
        return made
    return Console(highlight=False, markup=False, emoji=False, color_system=None, width=PLAIN_WIDTH)


def as_json(view: View) -> dict[str, object]:
    """What `shoal status --json` prints of a view: `blocks` lists the holders of each block."""
    return {
        "peers": [_peer_json(peer, view.at) for peer in view.peers],
        "blocks": [[peer.peer_id for peer in view.holders(block)] for block in range(view.n_blocks)],
        "missing": view.missing(),
        "revision": next((peer.revision for peer in view.peers), None),
    }


def _peer_json(peer: Announcement, now: float) -> dict[str, object]:
    return {
        "peer": peer.peer_id,
        "name": peer.name,
        "state": peer.state,
        "blocks": [peer.start, peer.stop],
        "quantization": peer.quantization,
        "dtype": peer.dtype,
        "decode_s_per_block": peer.decode_s,
        "prefill_s_per_token_and_block": peer.prefill_s,
        "queue": peer.queue,
        "free_tokens": peer.free_tokens,
        "expires_in_s": peer.expiry - now,
        "version": peer.version,
        "addrs": list(peer.addrs),
        "reach": peer.reach,
    }


def _peers(peers: Sequence[Announcement], now: float, width: int) -> Table:
    rows = [_row(peer, now) for peer in sorted(peers, key=lambda peer: (peer.start, peer.stop, peer.peer_id))]
    headings = LEFT | RIGHT
    widths = [max(map(len, cells)) for cells in zip(headings, *rows, strict=True)]
    shown = [True] * len(widths)
    for last in sorted(range(len(widths)), key=list(headings.values()).__getitem__, reverse=True):
        if sum(wide + 1 for wide, kept in zip(widths, shown, strict=True) if kept) > width:
            shown[last] = False
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in compress(headings, shown):
        table.add_column(heading, justify="right" if heading in RIGHT else "left", no_wrap=True)
    for row in rows:
        table.add_row(*compress(row, shown))
    return table


def _row(peer: Announcement, now: float) -> list[str]:
    blocks = peer.stop - peer.start
    return [
        short(peer.peer_id),
        _cut(peer.name) or "-",
        peer.state,
        peer.reach,
        f"{peer.start}:{peer.stop}",
        peer.quantization,
        f"{peer.decode_s * blocks * 1000:.1f}",
        f"{1 / (peer.prefill_s * blocks):.0f}" if peer.prefill_s > 0 else "-",
        str(peer.queue),
        str(peer.free_tokens),
        f"{peer.expiry - now:.0f} s",
    ]


def _cut(name: str) -> str:
    return name if len(name) <= MOST_NAME else f"{name[: MOST_NAME - 1]}…"


def _coverage(view: View, width: int) -> Group:
    """Lines of blocks, each over its number of holders."""
    lines: list[Text] = []
    coverage = view.coverage()
    a_line = max(1, min(BLOCKS_PER_LINE, (width - len("holders ")) // 4))
    for start in range(0, view.n_blocks, a_line):
        counts = coverage[start : start + a_line]
        lines.append(Text("block   " + "".join(f"{start + n:>4}" for n in range(len(counts)))))
        holders = Text("holders ")
        for count in counts:
            holders.append(f"{count:>4}", style=COLOURS[min(count, 2)])
        lines.append(holders)
    return Group(*lines)


def _gaps(view: View) -> Text:
    if gaps := view.missing():
        return Text(f"Nobody serves blocks {spans(gaps)}: the model cannot run.", style="bold red")
    if thin := [block for block, count in enumerate(view.coverage()) if count == 1]:
        return Text(f"Every block is held; blocks {spans(thin)} by one peer only.", style="yellow")
    return Text("Every block is held, by two peers or more.", style="green")
