"""Links that others open to this peer: how many, and how many bytes they may make it hold. No I/O, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.blocks.formats import row_bytes
from shoal.peer.wire import MAX_PAYLOAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from shoal.peer.channel import Channel
    from shoal.peer.lease import Lease

MAX_LINKS, MAX_LINKS_EACH = 512, 16  # in all and of one peer
MAX_HELD_BYTES = 512 * 1024 * 1024  # for all links: what of messages has come, and what nobody has read yet
MAX_UNREAD_BYTES = 1024 * 1024  # for one that serves no lease
EACH_LEASE = 2  # messages that may be on their way at a time: one of the time before a repair is taken back


def has_room(links: Mapping[int, Channel], leases: Collection[Lease], peer_id: str) -> bool:
    """Whether one link more of somebody's may be; the oldest that serves no lease makes room for it."""
    if sum(channel.remote == peer_id for channel in links.values()) >= MAX_LINKS_EACH:
        return False
    if len(links) >= MAX_LINKS:
        used = {lease.terms.link for lease in leases}
        hops = {lease.prev for lease in leases}  # one link of theirs brings many leases' states
        idle = [number for number, link in links.items() if number not in used and link.remote not in hops]
        if not idle:
            return False
        links[idle[0]].close()
    return True


def unfinished(links: Mapping[int, Channel], leases: Collection[Lease], peer_id: str) -> int:
    """Bytes of further messages in parts that are kept of a peer until they are whole: as much as leases let expect,
    over all its links. Whoever has none brings nothing that is of use."""
    expected = sum(
        EACH_LEASE * min(MAX_PAYLOAD_BYTES, lease.max_tokens * row_bytes(lease.dtype, lease.terms.width))
        for lease in leases
        if peer_id in (lease.owner, lease.prev)
    )
    return expected - sum(channel.link.parts.promised for channel in links.values() if channel.remote == peer_id)


def relieve(links: Mapping[int, Channel], leases: Collection[Lease]) -> None:
    """Close links whose other side has no lease and does not read what it has us say, and where all together hold too
    much, those of who makes us hold most."""
    served = {name for lease in leases for name in (lease.owner, lease.prev)}
    held: dict[str, int] = {}
    for channel in list(links.values()):
        if channel.remote not in served and channel.queued_bytes > MAX_UNREAD_BYTES:
            _end(channel, "does not read what it asked for")
        else:
            held[channel.remote] = held.get(channel.remote, 0) + _held(channel)
    while sum(held.values()) > MAX_HELD_BYTES:
        most = max(held, key=held.__getitem__)
        del held[most]
        for channel in [channel for channel in links.values() if channel.remote == most and _held(channel)]:
            _end(channel, "left too much half done")


def note_arriving(links: Mapping[int, Channel], leases: Collection[Lease], before: dict[int, int], now: float) -> None:
    """What links bring of messages in parts is heard by the leases that it may be for. `before`: by link, what there
    was of it the last time; it is brought up to date."""
    held = {number: channel.link.parts.held for number, channel in links.items()}
    bring = {links[number].remote for number, size in held.items() if size and size != before.get(number)}
    before.clear()
    before.update(held)
    for lease in leases:
        if lease.owner in bring or lease.prev in bring:
            lease.heard = now


def _held(channel: Channel) -> int:
    return channel.link.parts.held + channel.queued_bytes


def _end(channel: Channel, why: str) -> None:
    channel.why = why
    channel.close()
