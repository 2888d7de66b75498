"""Whether somebody else runs under our identity at an address. Only asked when a live record of ours is not ours."""

from __future__ import annotations

import asyncio

from shoal.dht.errors import HostError, InviteError
from shoal.dht.host import HostConfig, dial_all, open_host
from shoal.dht.invite import check_maddr

TRY_TIMEOUT_S = 1.0


async def answers_at(peer_id: str, maddr: str) -> bool:
    """Whether a peer that proves to be `peer_id` answers at `maddr` (without `/p2p/ID`).

    A bare TCP connect rules out most addresses at once; only then does a second, nameless daemon shake hands, because
    libp2p does not dial its own peer id.
    """
    full = f"{maddr}/p2p/{peer_id}"
    try:
        _, _, ip, protocol, port, *_ = check_maddr(full).split("/")
        if protocol != "tcp" or not await _listens(ip, int(port)):
            return False
        async with open_host(HostConfig()) as nameless:
            return bool(await dial_all(nameless, [full]))
    except (InviteError, HostError):
        return False


async def _listens(ip: str, port: int) -> bool:
    try:
        async with asyncio.timeout(TRY_TIMEOUT_S):
            _, writer = await asyncio.open_connection(ip, port)
    except OSError:  # a timeout is one too
        return False
    writer.close()
    return True
