"""A node of the directory that knows many others, without a daemon: who asks it, and what each draws from it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

from shoal.dht import protocol as protocol_module
from shoal.dht.foreign import P2PContext, PeerID, dht_pb2
from shoal.dht.identity import Identity
from shoal.dht.packing import unpack
from shoal.dht.protocol import BUCKET_SIZE, ShoalDHT, node_id_of

if TYPE_CHECKING:
    from shoal.dht.drawing import Drawing

ME = PeerID.from_base58(Identity.generate().peer_id)


class Known(set):
    """A routing table."""

    def get_nearest_neighbors(self, *_, **__):
        return [(node_id_of(ME), ME)] * BUCKET_SIZE


class AskedNode:
    """The node, and its clock in seconds."""

    def __init__(self, monkeypatch, store, drawn: Drawing) -> None:
        self.now, self.store = 100.0, store
        node = self.node = object.__new__(ShoalDHT)
        node.store, node.clock = store, SimpleNamespace(now=lambda _steady: 0.0)
        node._shunned, node._places, node.node_info = {}, {}, dht_pb2.NodeInfo()
        node._drawn, node.routing_table = drawn, Known()
        monkeypatch.setattr(protocol_module, "steady", lambda: self.now)

    async def find(self, asker: PeerID, *keys: bytes) -> list[dht_pb2.FindResult]:
        return list((await self.node.rpc_find(dht_pb2.FindRequest(keys=keys), P2PContext("", ME, asker))).results)

    async def given(self, asker: PeerID, *keys: bytes) -> int:
        """How many records."""
        return sum(len(unpack(result.value)) for result in await self.find(asker, *keys))

    async def drawn(self, asker: PeerID, *keys: bytes) -> int:
        """How many bytes."""
        return sum(result.ByteSize() for result in await self.find(asker, *keys))
