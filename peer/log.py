"""What a volunteer reads: whom this peer serves and how fast. Counts only, never content."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

    from shoal.peer.holding import Counts
    from shoal.peer.node import Node

REPORT_S = 15.0


async def report(node: Node, logger: logging.Logger) -> None:
    """One line every `REPORT_S` while somebody is served, and one when it falls quiet."""
    tokens, busy_s, quiet = node.tally.tokens, node.tally.busy_s, True
    while True:
        await asyncio.sleep(REPORT_S)
        done, busy = node.tally.tokens - tokens, node.tally.busy_s - busy_s
        tokens, busy_s = node.tally.tokens, node.tally.busy_s
        if done or node.book.leases:
            logger.info("%s", line(node, done / REPORT_S, busy / REPORT_S))
        elif not quiet:
            logger.info("idle: nobody uses this peer now")
        quiet = not done


def line(node: Node, tokens_per_s: float, busy: float) -> str:
    """Speed and load of the last `REPORT_S`, and who is served now, in words."""
    book, pages = node.book, node.book.pages
    free = pages.free + book.residency.prefix.idle_pages  # what is only remembered gives way at once
    used = 1 - free / pages.n_pages if pages.n_pages else 0.0
    now = f"{_count(len(book.leases), 'session')} of {_count(len(book.clients()), 'client')}, KV {used:.0%} full"
    return (
        f"blocks {node.engine.start}:{node.engine.stop}: {tokens_per_s:.1f} tokens/s, device busy {busy:.0%}; "
        f"{now if book.leases else 'no session is open now'}{_so_far(book.residency.counts)}"
    )


def _so_far(counts: Counts) -> str:
    """What has been saved and what has been moved since the start, where there is any."""
    parts = []
    if counts.hits:
        parts.append(f"{counts.hit_tokens} prompt tokens known from before")
    if counts.saved:
        parts.append(f"{_count(counts.saved, 'page')} moved to host memory")
    return f"; so far {', '.join(parts)}" if parts else ""


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
