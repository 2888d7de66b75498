"""How a peer leaves: what running sessions and the swarm are told first."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from shoal.dht.errors import HostError

if TYPE_CHECKING:
    from shoal.dht.directory import Directory
    from shoal.peer.announcer import Announcer
    from shoal.peer.node import Node

logger = logging.getLogger("shoal.peer")

WITHDRAW_S = 5.0


async def hand_over(node: Node, drain_s: float) -> None:
    """Ask running sessions to move, and serve until they have gone. What is announced is where this peer goes."""
    node.leave()
    if not await node.drain(drain_s):
        logger.warning("%d sessions did not finish within %g s", len(node.book.leases), drain_s)


async def withdraw(announced: Directory | Announcer) -> None:
    """Take back what is announced, so that nobody plans with us any more."""
    try:
        async with asyncio.timeout(WITHDRAW_S):
            await announced.withdraw()
    except (TimeoutError, HostError) as error:
        logger.warning("could not withdraw the announcement (%s); it expires by itself", error)


async def say_goodbye(announcer: Announcer, node: Node, drain_s: float, leave: asyncio.Event) -> None:
    """Ask running sessions to move, withdraw, so that nobody plans with us any more, and serve until they have gone."""
    node.leave()
    await withdraw(announcer)
    if leave.is_set() and not await node.drain(drain_s):
        logger.warning("%d sessions did not finish within %g s", len(node.book.leases), drain_s)
