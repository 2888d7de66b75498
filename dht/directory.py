"""One swarm's directory: announce ourselves, withdraw, see who is there. Knows records, not what their bodies mean.

A record's body is an envelope (which run of the peer wrote it, where that run listens, which revision) around the
caller's bytes; in a private swarm it is encrypted, and the model's name is left out of the clear part.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from shoal.dht.envelope import Envelope
from shoal.dht.errors import JoinError
from shoal.dht.identity import PUBLIC_BYTES
from shoal.dht.keys import SHARDS, record_key, shard_key
from shoal.dht.looking import Looking
from shoal.dht.maddr import is_loopback, is_relayed
from shoal.dht.node import Node, Sighting, open_node
from shoal.dht.opening import Backlog, Opened, Opener
from shoal.dht.record import Record, public_key_in, seal
from shoal.dht.twin import answers_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from shoal.dht.foreign import PeerID
    from shoal.dht.host import Host
    from shoal.dht.identity import Identity
    from shoal.dht.invite import Invite
    from shoal.dht.remembered import Remembered

logger = logging.getLogger(__name__)

MAX_TTL_S = 285.0  # others refuse more than 300 s, and clocks may differ by a few
TWIN_ADVICE = "stop it, or give this one another identity file"


class Nodes(NamedTuple):
    """Peers that answer as nodes of the directory, and so are there; and those that they named in the last look-up."""

    answering: frozenset[str] = frozenset()
    named: frozenset[str] = frozenset()


class Directory(Protocol):
    """What a peer or client needs of the swarm's directory."""

    async def announce(self, body: bytes, ttl_s: float) -> None:
        """Publish `body` as ours for `ttl_s` seconds (at most 285). RecordError if too long, JoinError on a twin."""
        ...

    async def withdraw(self) -> None:
        """Tell everybody that we have left."""
        ...

    async def lookup(self, within_s: float | None = None) -> list[Record]:
        """The newest live record of each peer, verified and decrypted; `expiry` is in this machine's own clock.
        `within_s`: what is verified so many seconds after the first node's answer; the look-up then goes on."""
        ...

    async def rest(self) -> list[Record]:
        """The same once all have answered that the last look-up asked, and all is verified."""
        ...

    def nodes(self) -> Nodes:
        """Who answers, whatever its record says."""
        ...


class DHTDirectory:
    """`Directory` over a DHT node. Made by `open_directory`."""

    def __init__(self, node: Node, identity: Identity, invite: Invite, revision: str) -> None:
        self._node, self._identity, self._invite, self._revision = node, identity, invite, revision
        self._key = record_key(invite.namespace, identity.peer_id)
        self._opener = Opener(invite)
        self._backlog = Backlog(self._note, self._met)
        self._run = round(time.time() * 1000).to_bytes(6, "big") + os.urandom(2)  # earlier runs compare lower
        self._sequence = 0
        self._expiry = 0.0
        self._looking: Looking | None = None
        self._seen: dict[str, Opened] = {}  # the newest of each peer, until it expires

    async def announce(self, body: bytes, ttl_s: float) -> None:
        """See `Directory`."""
        with suppress(OSError, EOFError):  # the network daemon is going; others notice that
            await self._node.host.look()
        (sighting,) = await self._node.look(self._key)
        await self.refuse_twin(sighting)
        content = Envelope(self._run, _place(self._node.host.maddrs), self._revision, body).encode()
        expiry = self._node.now() + min(ttl_s, MAX_TTL_S)
        await self._publish(
            self._invite.encrypt(content, self._opener.context(self._identity.peer_id)), expiry, sighting
        )

    async def withdraw(self) -> None:
        """See `Directory`. The empty record outlives the last announcement, so that this cannot come back."""
        if self._expiry:
            (sighting,) = await self._node.look(self._key)
            await self._publish(b"", max(self._expiry, self._node.now()) + 1.0, sighting)

    async def lookup(self, within_s: float | None = None) -> list[Record]:
        """See `Directory`."""
        if self._looking is None or self._looking.over:
            keys = [shard_key(self._invite.namespace, shard) for shard in range(SHARDS)]
            held = (*(opened.raw for opened in self._seen.values()), *self._backlog)
            self._looking = Looking(self._node, keys, held, self._backlog)
        await self._looking.wait(for_all=within_s is None)
        await self._backlog.wait(within_s)
        return self._live()

    async def rest(self) -> list[Record]:
        """See `Directory`."""
        if self._looking is None:
            return await self.lookup()
        await self._looking.wait(for_all=True)
        await self._backlog.wait(hurried=False)
        return self._live()

    def _live(self) -> list[Record]:
        self._forget_expired()
        # A record counts until it expires, also where the nodes that hold it do not answer just now.
        offset_s = self._node.clock_offset_s
        return [
            replace(opened.record, model=self._invite.model, expiry=opened.record.expiry - offset_s)
            for opened in self._seen.values()
            if opened.envelope is not None
        ]

    def nodes(self) -> Nodes:
        """See `Directory`."""
        answering = frozenset(map(str, self._node.protocol.routing_table.peers()))
        return Nodes(answering, frozenset(map(str, self._named())) - answering)

    async def refuse_twin(self, sighting: Sighting | None = None) -> None:
        """JoinError if another running peer uses our identity: its record is live, and it answers where that says."""
        if sighting is None:
            (sighting,) = await self._node.look(self._key)
        for raw in sighting.records:
            if public_key_in(raw) == self._identity.public_bytes:
                self._note(raw)
        self._forget_expired()
        last = self._seen.get(self._identity.peer_id)
        if last is None or last.record.sequence <= self._sequence:
            return
        other, first = last.envelope, not self._expiry
        self._sequence = last.record.sequence  # ours must be higher than that of an earlier run
        if other is None or other.run == self._run:
            return
        me = self._identity.peer_id
        elsewhere = other.maddr not in {maddr.rpartition("/p2p/")[0] for maddr in self._node.host.maddrs}
        # When we are new, a twin must answer to be believed: we may have been killed and started again. Later, a record
        # newer than ours is proof of a twin, and the run that started last must go.
        if await answers_at(me, other.maddr) if first and elsewhere else not first and other.run < self._run:
            raise JoinError(f"Another running peer at {other.maddr} uses the identity {me}; {TWIN_ADVICE}.")

    async def _publish(self, body: bytes, expiry: float, sighting: Sighting) -> None:
        self._sequence = max(self._sequence + 1, round(self._node.now() * 1000))
        self._expiry = max(self._expiry, expiry)
        me, namespace = self._identity.peer_id, self._invite.namespace
        raw = seal(Record(namespace, self._opener.label, "", me, self._sequence, expiry, body), self._identity)
        taken = await self._node.store(self._key, raw, sighting.nearest)
        if sighting.nearest and not taken:
            logger.warning("none of %d directory nodes took our record", len(sighting.nearest))

    async def close(self) -> None:
        """Ask for nothing and verify nothing more."""
        if self._looking is not None:
            await self._looking.end()
        self._backlog.close()

    def _note(self, raw: bytes) -> None:
        """Keep a record if it is good and none of its peer with a higher sequence number is known."""
        opened = self._opener.open(raw, self._node.now())
        if opened is not None:
            known = self._seen.get(opened.record.peer_id)
            if known is None or opened.record.sequence >= known.record.sequence:
                self._seen[opened.record.peer_id] = opened

    def _forget_expired(self) -> None:
        now = self._node.now()
        self._seen = {peer_id: opened for peer_id, opened in self._seen.items() if opened.record.expiry > now}

    def _met(self) -> list[bytes]:
        """Public keys of the nodes that have answered, which are there, and before them of those that they named."""
        answering = self._node.protocol.routing_table.peers()
        return [peer.to_bytes()[-PUBLIC_BYTES:] for peer in (*self._named().difference(answering), *answering)]

    def _named(self) -> set[PeerID]:
        return self._looking.named if self._looking is not None else set()


@asynccontextmanager
async def open_directory(
    host: Host,
    identity: Identity,
    invite: Invite,
    revision: str,
    remembered: Remembered | None = None,
    *,
    guest: bool = False,
    fresh: bool = False,
) -> AsyncIterator[DHTDirectory]:
    """Join a swarm's directory. JoinError if no bootstrap node answers or another live peer uses our identity.

    revision: of the checkpoint that this peer serves, at most 64 bytes; "" for a client. remembered: nodes to join
    through when no bootstrap node answers; it learns new ones. guest: only asks. fresh: the identity is new, so
    nobody else has it.
    """
    async with open_node(host, invite.peers, remembered, guest=guest) as node:
        directory = DHTDirectory(node, identity, invite, revision)
        if not fresh:
            await directory.refuse_twin()
        try:
            yield directory
        finally:
            await directory.close()


def _place(maddrs: Sequence[str]) -> str:
    """Where a twin on another machine would look for us: an address of ours that leads there directly; "" if none."""
    direct = sorted((maddr for maddr in maddrs if not is_relayed(maddr)), key=is_loopback)
    return direct[0].rpartition("/p2p/")[0] if direct else ""


async def watch(directory: Directory, period_s: float) -> AsyncIterator[list[Record]]:
    """Look up at once, and again every `period_s` seconds after the last answer, for ever."""
    while True:
        yield await directory.lookup()
        await asyncio.sleep(period_s)
