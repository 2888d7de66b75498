"""What the log says of a peer: whom it serves, and how full its KV is with what somebody still needs."""

from __future__ import annotations

from dataclasses import replace

from shoal.peer.book import Offer
from shoal.peer.log import line
from shoal.peer.node import Node, NodeConfig
from shoal.peer.wire import PREFIX_TOKENS, Open, session_name

from tests.sim.network import SimTransport
from tests.sim.swarm import World
from tests.sim.toy import PAGE_TOKENS, WIDTH, ToyEngine

OPEN = Open(
    session=session_name("alice", b"s" * 8), epoch=1,
    namespace=b"n" * 32, revision="r1", start=2, stop=4, max_tokens=40 * PAGE_TOKENS,
    next_step=0, dtype="float32", prev="", next="", next_addrs=(), final=True, forward_replay=False, proof=b"",
    prefix=(b"k" * 16,) * 2,
)  # fmt: skip


async def test_sessions_are_counted_and_kv_that_is_only_remembered_is_not_full():
    engine = ToyEngine(2, 6)
    offer = Offer(b"n" * 32, "r1", 2, 6, WIDTH, engine.n_pages, PAGE_TOKENS, lambda *_: True)
    node = Node(NodeConfig(offer, "test"), engine, SimTransport(World(1).net, "peer"))
    assert line(node, 0.0, 0.0) == "blocks 2:6: 0.0 tokens/s, device busy 0%; no session is open now"
    lease = node.book.open(OPEN, "alice")
    residency, tokens = node.book.residency, 40 * PAGE_TOKENS
    assert residency.prepare(lease.holding, 0, tokens)
    used = f"KV {40 / engine.n_pages:.0%} full"
    assert line(node, 1.25, 0.5) == f"blocks 2:6: 1.2 tokens/s, device busy 50%; 1 session of 1 client, {used}"
    residency.written(lease.holding)
    node.book.detach(lease)
    node.book.free(lease)
    assert residency.pages.free < engine.n_pages, "the beginning of the prompt is remembered"
    node.book.open(replace(OPEN, session=session_name("bob", b"s" * 8)), "bob")
    assert line(node, 0.0, 0.0).endswith("1 session of 1 client, KV 0% full")


async def test_what_the_cache_saved_and_what_was_swapped_is_told():
    engine = ToyEngine(2, 6)
    offer = Offer(b"n" * 32, "r1", 2, 6, WIDTH, engine.n_pages, PAGE_TOKENS, lambda *_: True)
    node = Node(NodeConfig(offer, "test"), engine, SimTransport(World(1).net, "peer"))
    first = node.book.open(OPEN, "alice")
    node.book.residency.prepare(first.holding, 0, 40 * PAGE_TOKENS)
    node.book.residency.written(first.holding)
    node.book.detach(first)
    node.book.free(first)
    node.book.open(OPEN, "alice")
    node.book.residency.counts.saved = 1
    known = len(OPEN.prefix) * PREFIX_TOKENS
    assert line(node, 0.0, 0.0).endswith(f"so far {known} prompt tokens known from before, 1 page moved to host memory")
