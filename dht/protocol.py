"""The directory's calls on the wire (ping, store, find), with a limit on all that a stranger sends. No searching.

Subclasses hivemind's DHTProtocol and keeps its messages, routing table and transport. Replaced: every line that
decodes, believes or stores. Nothing that comes from the network is unpacked with msgpack (hivemind's nested extension
types kill the receiver), no pattern is matched against it, and node ids are computed from the authenticated peer id,
never read. Unlike hivemind, a node does not push its records to newcomers: peers announce anew before that matters.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from shoal.dht.drawing import Drawing, bytes_drawn, offers_drawn
from shoal.dht.errors import RecordError
from shoal.dht.foreign import CALL_ERRORS, DHTID, DHTProtocol, P2PContext, PeerID, dht_pb2
from shoal.dht.keys import KEY_BYTES, network_of, node_key
from shoal.dht.packing import DIGESTS, FEW, cut, digests_in, is_asked, pack, some_of, unpack
from shoal.dht.steady import steady
from shoal.dht.store import DIGEST_BYTES, RecordStore
from shoal.dht.table import LimitedTable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal.dht.clock import SwarmClock
    from shoal.dht.host import Host

logger = logging.getLogger(__name__)

T = TypeVar("T")
BUCKET_SIZE = 20
DEPTH_MODULO = 5
REPLICAS = 10
CALL_TIMEOUT_S = 3.0
SHUN_S = 15.0
MAX_KEYS = 64
MAX_OFFERS = 4  # records in one request: who is honest offers one, its own
MAX_PEER_ID_BYTES = 64
MAX_REQUEST_BYTES = 512 * 1024
REPLY_BUDGET_BYTES = 3 * 1024 * 1024  # the daemon drops replies over 4 MiB


class Found(NamedTuple):
    """A node's answer about one key: sealed records, not yet verified, and the nodes it knows nearest to the key."""

    records: list[bytes]
    peers: list[PeerID]


class Told(NamedTuple):
    """A node's answer about one key: digests of the records that it has, and the nodes it knows nearest to the key."""

    digests: frozenset[bytes]
    peers: list[PeerID]


class ShoalDHT(DHTProtocol):  # type: ignore[misc]  # hivemind is untyped
    """One node's side of the protocol. The class's name is part of the wire's protocol id."""

    _rpc_handlers = None  # hivemind caches these on the class, and would hand us its own
    _stub_type = None
    serializer = None
    store: RecordStore
    clock: SwarmClock
    routing_table: LimitedTable
    _shunned: dict[PeerID, float]
    _drawn: Drawing
    _offered: Drawing
    _places: dict[str, str]

    @classmethod
    async def open(cls, host: Host, clock: SwarmClock, *, guest: bool) -> ShoalDHT:
        """Start answering on a host. A guest or a relayed host only asks: as a node it would be no use to others."""
        self: ShoalDHT = await super().create(
            host.p2p,
            node_id_of(host.p2p.peer_id),
            bucket_size=BUCKET_SIZE,
            depth_modulo=DEPTH_MODULO,
            num_replicas=REPLICAS,
            wait_timeout=CALL_TIMEOUT_S,
            parallel_rpc=64,
            client_mode=True,  # the handlers are added below, once the fields that they use are there
        )
        self.clock, self.store, self._shunned, self._places = clock, RecordStore(), {}, {}
        self._drawn, self._offered = bytes_drawn(), offers_drawn()
        self.routing_table = LimitedTable(self.node_id, BUCKET_SIZE, DEPTH_MODULO)
        self.client_mode = guest or host.relayed
        if not self.client_mode:
            await self.add_p2p_handlers(host.p2p)
            self.node_info = dht_pb2.NodeInfo(node_id=self.node_id.to_bytes())
        return self

    def now(self) -> float:
        """Swarm time, unix seconds."""
        return self.clock.now(steady())

    # What others ask of us

    async def rpc_ping(self, request: dht_pb2.PingRequest, context: P2PContext) -> dht_pb2.PingResponse:
        """Say who we are and what time it is."""
        await self._met(request.peer, context.remote_id)
        return dht_pb2.PingResponse(peer=self.node_info, dht_time=self.now(), available=True)

    async def rpc_store(self, request: dht_pb2.StoreRequest, context: P2PContext) -> dht_pb2.StoreResponse:
        """Store up to 4 records, each judged by itself; a request of wrong shape is refused whole."""
        sizes = {len(request.keys), len(request.subkeys), len(request.values)}
        if len(sizes) != 1 or len(request.keys) > MAX_OFFERS or request.ByteSize() > MAX_REQUEST_BYTES:
            return dht_pb2.StoreResponse(store_ok=[False] * min(len(request.keys), MAX_KEYS), peer=self.node_info)
        asker, stored = context.remote_id, []
        from_where, now = await self._network(self._offered, asker), steady()
        if self._offered.left(str(asker), from_where, now, known=self._knows(asker))[0] < len(request.keys):
            return dht_pb2.StoreResponse(store_ok=[False] * len(request.keys), peer=self.node_info)
        self._offered.draw(str(asker), from_where, len(request.keys), now)
        for offer in zip(request.keys, request.subkeys, request.values, strict=True):
            network = await self._whence(*offer[:2], asker)
            stored.append(self._stored(*offer, asker, network))
            await asyncio.sleep(0)  # a signature takes a quarter of a millisecond, and tokens are served here too
        await self._met(request.peer, asker)
        return dht_pb2.StoreResponse(store_ok=stored, peer=self.node_info)

    async def rpc_find(self, request: dht_pb2.FindRequest, context: P2PContext) -> dht_pb2.FindResponse:
        """Give the records under up to 64 keys, within 3 MiB in all and what the asker may draw, and the nearest nodes
        known. What follows a key asks for the digests of its records (DIGESTS), for those with the digests that follow
        (SOME), or for a few to begin with (FEW)."""
        wanted = [(key[:KEY_BYTES], key[KEY_BYTES : KEY_BYTES + 1], key[KEY_BYTES + 1 :]) for key in request.keys]
        if not 0 < len(wanted) <= MAX_KEYS or request.ByteSize() > MAX_REQUEST_BYTES or not all(map(is_asked, wanted)):
            return dht_pb2.FindResponse(peer=self.node_info)
        asker = context.remote_id
        network, now = await self._network(self._drawn, asker), steady()
        left, of_records = self._drawn.left(str(asker), network, now, known=self._knows(asker))
        if left <= 0:
            return dht_pb2.FindResponse(peer=self.node_info)
        budget = min(REPLY_BUDGET_BYTES, of_records) // len(wanted)
        results = [self._result(*each, budget, asker) for each in wanted]
        self._drawn.draw(str(asker), network, sum(result.ByteSize() for result in results), now)
        await self._met(request.peer, asker)
        return dht_pb2.FindResponse(results=results, peer=self.node_info)

    def _knows(self, asker: PeerID) -> bool:
        return node_id_of(asker) in self.routing_table

    async def _network(self, drawing: Drawing, asker: PeerID) -> str | None:
        """The network of who asks, as `Drawing` wants it: looked for only if that decides what is left."""
        if str(asker) not in self._places and drawing.asks_whence(steady()):
            self._places = await self.addresses()
        maddr = self._places.get(str(asker))
        return "" if maddr is None else network_of(maddr)

    async def _whence(self, key: bytes, subkey: bytes, offerer: PeerID) -> str | None:
        """The network of who offers its own record, as in `Kept`, if that may decide whether there is room for it."""
        if subkey != str(offerer).encode() or not self.store.asks_whence(key, str(offerer)):
            return ""
        maddr = (await self.addresses()).get(str(offerer))
        return "" if maddr is None else network_of(maddr)

    def _stored(self, key: bytes, subkey: bytes, value: bytes, offerer: PeerID, network: str | None) -> bool:
        try:
            if len(key) != KEY_BYTES or len(subkey) > MAX_PEER_ID_BYTES:
                raise RecordError("The record's key or subkey has a wrong length.")
            peer_id = subkey.decode("ascii")
            own = peer_id == str(offerer)
            self.store.put(key, peer_id, value, self.now(), by_owner=own, network=network)
        except (RecordError, UnicodeDecodeError) as refusal:
            logger.debug("refused a record: %s", refusal)
            return False
        return True

    def _result(self, key: bytes, what: bytes, digests: bytes, budget_bytes: int, asker: PeerID) -> dht_pb2.FindResult:
        if what == DIGESTS:
            value = b"".join(self.store.digests(key, self.now())[: budget_bytes // DIGEST_BYTES])
        elif what == FEW:
            known = frozenset(map(str, self.routing_table.peers()))
            value = pack(self.store.few(key, self.now(), known), budget_bytes)
        else:
            some, now = frozenset(cut(digests)), self.now()
            value = pack(self.store.some(key, some, now) if what else self.store.get(key, now), budget_bytes)
        near = self.routing_table.get_nearest_neighbors(DHTID.from_bytes(key), BUCKET_SIZE, exclude=node_id_of(asker))
        return dht_pb2.FindResult(
            type=dht_pb2.FOUND_DICTIONARY if value else dht_pb2.NOT_FOUND,
            value=value,
            nearest_node_ids=[node_id.to_bytes() for node_id, _ in near],
            nearest_peer_ids=[peer.to_bytes() for _, peer in near],
        )

    # What we ask of others

    async def call_ping(self, peer: PeerID) -> bool:
        """Whether a peer answers; its clock is noted."""
        asked_at = steady()
        try:
            response = await self.get_stub(peer).rpc_ping(
                dht_pb2.PingRequest(peer=self.node_info), timeout=CALL_TIMEOUT_S
            )
        except CALL_ERRORS as error:
            self._failed(peer, error)
            return False
        self.clock.observe(str(peer), response.dht_time, (asked_at + steady()) / 2)
        await self._met(response.peer, peer)
        return True

    async def call_store(self, peer: PeerID, key: bytes, peer_id: str, raw: bytes) -> bool | None:
        """Offer one sealed record: whether it was taken; None if the node does not answer."""
        request = dht_pb2.StoreRequest(
            keys=[key],
            subkeys=[peer_id.encode()],
            values=[raw],
            expiration_time=[0.0],
            in_cache=[False],
            peer=self.node_info,
        )
        try:
            response = await self.get_stub(peer).rpc_store(request, timeout=CALL_TIMEOUT_S)
        except CALL_ERRORS as error:
            self._failed(peer, error)
            return None
        return len(response.store_ok) == 1 and bool(response.store_ok[0])

    async def call_find(
        self, peer: PeerID, keys: Sequence[bytes], some: Sequence[frozenset[bytes]] | None = None
    ) -> list[Found] | None:
        """Ask for records and neighbours, one answer per key in order; None if the node does not answer sensibly.
        `some`: for each key the digests of the records that are wanted, if not all are."""
        asked = keys if some is None else [some_of(*each) for each in zip(keys, some, strict=True)]
        return await self._find(peer, asked, lambda value, peers: Found(unpack(value), peers))

    async def call_few(self, peer: PeerID, keys: Sequence[bytes]) -> list[Found] | None:
        """As `call_find`, for at most `store.FEW` records under each key."""
        return await self._find(peer, [key + FEW for key in keys], lambda value, peers: Found(unpack(value), peers))

    async def call_digests(self, peer: PeerID, keys: Sequence[bytes]) -> list[Told] | None:
        """As `call_find`, for digests in place of records."""
        return await self._find(
            peer, [key + DIGESTS for key in keys], lambda value, peers: Told(digests_in(value), peers)
        )

    async def _find(
        self, peer: PeerID, keys: Sequence[bytes], read: Callable[[bytes, list[PeerID]], T]
    ) -> list[T] | None:
        request = dht_pb2.FindRequest(keys=list(keys), peer=self.node_info)
        if self._shunned.get(peer, 0.0) > steady():
            return None
        try:
            async with self.rpc_semaphore:
                response = await self.get_stub(peer).rpc_find(request, timeout=CALL_TIMEOUT_S)
            if len(response.results) != len(keys):
                raise ValueError(f"{len(response.results)} answers to {len(keys)} questions")
            found = [read(result.value, _peers(result.nearest_peer_ids)) for result in response.results]
        except CALL_ERRORS as error:
            self._failed(peer, error)
            return None
        await self._met(response.peer, peer)
        return found

    async def addresses(self) -> dict[str, str]:
        """Peer id -> multiaddr of every connection that stands."""
        try:
            return {str(peer.peer_id): str(peer.addrs[0]) for peer in await self.p2p.list_peers() if peer.addrs}
        except CALL_ERRORS as error:
            logger.debug("our daemon does not answer: %s", error)
            return {}

    async def _met(self, info: dht_pb2.NodeInfo, peer: PeerID) -> None:
        """A peer that says it is a node has answered or asked: remember it, under the node id that is its own."""
        self._shunned.pop(peer, None)
        node_id = node_id_of(peer)
        if not info.node_id:
            return
        if node_id in self.routing_table:
            self.routing_table.refresh(node_id, peer)
        elif maddr := (await self.addresses()).get(str(peer)):
            self.routing_table.admit(node_id, peer, network_of(maddr))

    def _failed(self, peer: PeerID, error: Exception) -> None:
        """Forget a node that did not answer, and do not ask it again for a while, whoever recommends it."""
        logger.debug("no answer from %s: %s", peer, error)
        now = steady()
        self._shunned = {other: until for other, until in self._shunned.items() if until > now}
        self._shunned[peer] = now + SHUN_S
        if node_id_of(peer) in self.routing_table:
            del self.routing_table[node_id_of(peer)]


def node_id_of(peer: PeerID) -> DHTID:
    """A peer's only node id."""
    return DHTID.from_bytes(node_key(peer.to_bytes()))


def _peers(raw_ids: Sequence[bytes]) -> list[PeerID]:
    return [PeerID(raw) for raw in raw_ids[:BUCKET_SIZE] if 0 < len(raw) <= MAX_PEER_ID_BYTES]
