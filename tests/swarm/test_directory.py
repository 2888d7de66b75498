"""The directory on real daemons: honest records are found, hostile ones refused on the wire, private swarms unseen."""

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from types import SimpleNamespace

import pytest
from shoal.dht.directory import open_directory, watch
from shoal.dht.errors import HostError, JoinError
from shoal.dht.foreign import P2PDaemonError, PeerID, dht_pb2
from shoal.dht.host import HostConfig, open_host
from shoal.dht.identity import Identity
from shoal.dht.invite import Invite
from shoal.dht.keys import SHARDS, record_key, shard_key
from shoal.dht.node import open_node
from shoal.dht.packing import pack
from shoal.dht.record import Record, seal

from tests.steadiness import in_time

pytestmark = pytest.mark.swarm

SECRET = b"s" * 32


@pytest.fixture
async def swarm():
    """A bootstrap node, and ways to add peers that all end with the test."""
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(open_host(HostConfig()))
        node = await stack.enter_async_context(open_node(host))

        async def add(identity=None, secret=None, revision="r1", **options):
            peer = await stack.enter_async_context(open_host(HostConfig(identity=identity)))
            invite = Invite("default", "demo", host.maddrs, secret)
            return await stack.enter_async_context(open_directory(peer, peer.identity, invite, revision, **options))

        async def stranger():
            """A bare libp2p host connected to the bootstrap node: what an attacker has."""
            return await stack.enter_async_context(open_host(HostConfig(bootstrap=host.maddrs)))

        yield SimpleNamespace(host=host, node=node, add=add, stranger=stranger, stack=stack)


async def offer(stranger, host, *offers, expiry=0.0):
    """Offer (key, subkey, value) triples in one raw store request; the answers, or None if the call failed."""
    request = dht_pb2.StoreRequest(
        keys=[key for key, _, _ in offers],
        subkeys=[subkey for _, subkey, _ in offers],
        values=[value for _, _, value in offers],
        expiration_time=[expiry] * len(offers),
        in_cache=[False] * len(offers),
    )
    to = PeerID.from_base58(host.peer_id)
    response = await stranger.p2p.call_protobuf_handler(to, "ShoalDHT.rpc_store", request, dht_pb2.StoreResponse)
    return list(response.store_ok)


def own_offer(identity, record):
    return record_key(record.namespace, identity.peer_id), identity.peer_id.encode(), seal(record, identity)


async def test_announce_look_up_withdraw(swarm):
    alice, bob = await swarm.add(), await swarm.add(revision="r2")
    await alice.announce(b"alice 1", 60)
    await bob.announce(b"bob", 60)
    await alice.announce(b"alice 2", 60)
    records = {record.body: record for record in await bob.lookup()}
    assert set(records) == {b"alice 2", b"bob"}
    assert records[b"bob"].revision == "r2"
    assert records[b"bob"].model == "demo"
    assert 50 < records[b"bob"].expiry - time.time() <= 60
    await alice.withdraw()
    assert [record.body for record in await bob.lookup()] == [b"bob"]
    await alice.announce(b"alice 3", 60)
    assert {record.body for record in await bob.lookup()} == {b"alice 3", b"bob"}


async def test_a_guest_finds_all_and_is_asked_by_nobody(swarm):
    alice, guest = await swarm.add(), await swarm.add(guest=True, fresh=True)
    await alice.announce(b"alice", 60)
    assert [record.body for record in await guest.lookup()] == [b"alice"]
    nodes = {swarm.host.peer_id, alice._identity.peer_id}
    assert guest.nodes().answering == nodes
    await alice.lookup()
    assert set(map(str, swarm.node.protocol.routing_table.peers())) | alice.nodes().answering == nodes


async def test_watch_sees_changes(swarm):
    alice, bob = await swarm.add(), await swarm.add()
    seen = watch(bob, 0.05)
    assert await anext(seen) == []
    await alice.announce(b"here", 60)
    async with asyncio.timeout(10):
        while not (records := await anext(seen)):
            pass
    assert records[0].body == b"here"
    await seen.aclose()


async def test_a_restarted_peer_continues_its_sequence(swarm):
    identity = Identity.generate()
    reader = await swarm.add()
    invite = Invite("default", "demo", swarm.host.maddrs)
    async with (
        open_host(HostConfig(identity=identity)) as host,
        open_directory(host, identity, invite, "") as directory,
    ):
        await directory.announce(b"before", 60)  # and it leaves without a word
    again = await swarm.add(identity)
    await again.announce(b"after", 60)
    assert [record.body for record in await reader.lookup()] == [b"after"]


async def test_a_twin_is_refused(swarm):
    identity = Identity.generate()
    first = await swarm.add(identity)
    await first.announce(b"first", 60)
    with pytest.raises(JoinError, match="identity"):
        await swarm.add(identity)
    assert [record.body for record in await first.lookup()] == [b"first"]


async def test_a_private_swarm_is_invisible_without_its_secret(swarm):
    member, other = await swarm.add(secret=SECRET), await swarm.add(secret=SECRET)
    public, guesser = await swarm.add(), await swarm.add(secret=b"t" * 32)
    await member.announce(b"hidden words", 60)
    assert [record.body for record in await other.lookup()] == [b"hidden words"]
    assert await public.lookup() == []
    assert await guesser.lookup() == []
    key = record_key(Invite("default", "demo", (), SECRET).namespace, member._identity.peer_id)
    (stored,) = swarm.node.protocol.store.get(key, time.time())  # even who stores the record cannot read it
    for clear in (b"hidden words", b"demo", b"r1", b"127.0.0.1"):
        assert clear not in stored


async def test_hostile_stores_are_refused_and_the_node_lives(swarm):
    alice = await swarm.add()
    await alice.announce(b"honest", 200)
    stranger = await swarm.stranger()
    thief = stranger.identity
    namespace, now = Invite("default", "demo", ()).namespace, time.time()
    record = Record(namespace, "demo", "", thief.peer_id, 1, now + 60, b"x")
    key, subkey, good = own_offer(thief, record)
    alice_id = alice._identity.peer_id
    alice_key = record_key(namespace, alice_id)
    (alices,) = swarm.node.protocol.store.get(alice_key, now)
    longer = bytearray(alices)
    longer[76:84] = seal(replace(record, expiry=now + 290), thief)[76:84]
    hostile = [
        own_offer(thief, replace(record, expiry=now + 3600)),  # far future
        own_offer(thief, replace(record, expiry=now - 1)),  # expired
        (key, subkey, good[:-64]),  # unsigned
        (key, subkey, good[:-64] + bytes(64)),
        (key, subkey, good + b"x" * 2048),  # oversized
        (key, subkey, b"\x91" * 2000),  # nested
        (key, b"\x91" * 2000, good),
        (key, b"\xff" * 40, good),
        (key, b"", good),
        (b"", subkey, good),
        (b"k" * 20, subkey, good),  # under a key that is not its own
        (key, alice_id.encode(), good),  # as somebody else
        (alice_key, alice_id.encode(), good),
        (alice_key, alice_id.encode(), bytes(longer)),  # alice's own words, with a longer life
    ]
    for attempt in hostile:
        assert await offer(stranger, swarm.host, attempt) == [False], attempt
    assert await offer(stranger, swarm.host, *hostile[:3], (key, subkey, good)) == [False] * 3 + [True]
    other = Identity.generate()
    beside = own_offer(other, replace(record, peer_id=other.peer_id))
    assert not any(await offer(stranger, swarm.host, *[beside] * 5)), "at most 4 records a request"
    assert len(swarm.node.protocol.store) == 2
    assert await offer(stranger, swarm.host, (alice_key, alice_id.encode(), alices)) == [True], "a repeat does no harm"
    bodies = {opened.body for opened in await (await swarm.add()).lookup()}
    assert bodies == {b"honest"}, "the stranger's record has no envelope, and hides nothing"


async def test_an_older_record_cannot_be_replayed(swarm):
    alice, bob = await swarm.add(), await swarm.add()
    key = record_key(Invite("default", "demo", ()).namespace, alice._identity.peer_id)
    await alice.announce(b"old", 250)
    (old,) = swarm.node.protocol.store.get(key, time.time())
    await alice.announce(b"new", 60)
    stranger = await swarm.stranger()
    replay = (key, alice._identity.peer_id.encode(), old)
    assert await offer(stranger, swarm.host, replay) == [False]
    assert [record.body for record in await bob.lookup()] == [b"new"]
    await alice.withdraw()
    assert await offer(stranger, swarm.host, replay) == [False]
    assert await bob.lookup() == []


async def test_malformed_finds_and_pings_do_no_harm(swarm):
    stranger = await swarm.stranger()
    to = PeerID.from_base58(swarm.host.peer_id)
    key = b"k" * 20
    cut, many, beside = key + b"s" + b"x" * 7, key + b"s" + b"x" * 8 * 513, key + b"d" + b"x" * 8
    for keys in ([], [b""], [b"k" * 19], [key] * 65, [b"k" * 21, key], [cut], [key, many], [beside]):
        request = dht_pb2.FindRequest(keys=keys, peer=dht_pb2.NodeInfo(node_id=b"\xff" * 300))
        response = await stranger.p2p.call_protobuf_handler(to, "ShoalDHT.rpc_find", request, dht_pb2.FindResponse)
        assert not response.results
    chosen = swarm.node.protocol.node_id.to_bytes()[:-1] + b"\x00"  # next to the victim, instead of where it belongs
    request = dht_pb2.PingRequest(peer=dht_pb2.NodeInfo(node_id=chosen))
    await stranger.p2p.call_protobuf_handler(to, "ShoalDHT.rpc_ping", request, dht_pb2.PingResponse)
    listed = {node_id.to_bytes() for node_id in swarm.node.protocol.routing_table.uid_to_peer_id}
    assert chosen not in listed
    alice = await swarm.add()
    await alice.announce(b"alive", 60)
    assert [record.body for record in await alice.lookup()] == [b"alive"]


async def test_a_hostile_node_hides_no_honest_record(swarm):
    """A node that answers every question with rubbish in front of one good record, and with floods of neighbours."""
    alice, bob = await swarm.add(), await swarm.add()
    stranger = await swarm.stranger()
    carol = Identity.generate()
    namespace = Invite("default", "demo", ()).namespace
    forged = seal(Record(namespace, "demo", "", carol.peer_id, 1, time.time() + 60, b"x"), carol)[:-1] + b"x"
    asked = []

    async def find(request: dht_pb2.FindRequest, context) -> dht_pb2.FindResponse:
        asked.append(context.remote_id)
        lies = [
            pack([b"\x91" * 2000, forged, b"", b"x" * 4000], 1 << 20),
            b"\x91" * 100_000,
            pack([forged], 1 << 20) + b"\xff",
        ]
        results = [
            dht_pb2.FindResult(
                type=2, value=lies[number % len(asked) % 3], nearest_peer_ids=[b"\x00" * 500, b"x"] * 500
            )
            for number in range(len(request.keys))
        ]
        return dht_pb2.FindResponse(results=results, peer=dht_pb2.NodeInfo(node_id=b"n" * 20))

    await stranger.p2p.add_protobuf_handler("ShoalDHT.rpc_find", find, dht_pb2.FindRequest)
    request = dht_pb2.PingRequest(peer=dht_pb2.NodeInfo(node_id=b"n" * 20))
    for host in (swarm.host, alice._node.host, bob._node.host):
        await stranger.connect(host.peer_id, host.maddrs)
        to = PeerID.from_base58(host.peer_id)
        await stranger.p2p.call_protobuf_handler(to, "ShoalDHT.rpc_ping", request, dht_pb2.PingResponse)
    for round_number in range(3):
        await alice.announce(b"honest %d" % round_number, 60)
        assert [record.body for record in await bob.lookup()] == [b"honest %d" % round_number]
    assert asked, "the hostile node must have been asked for this to show anything"


async def test_a_clock_off_by_ten_minutes_joins_and_is_seen(swarm, monkeypatch):
    shift_s, true_time = [0.0], time.time
    clock = SimpleNamespace(time=lambda: true_time() + shift_s[0])
    monkeypatch.setattr("shoal.dht.node.time", clock)
    bob = await swarm.add()
    await bob.announce(b"right", 60)
    for shift in (600.0, -600.0):
        shift_s[0] = shift
        wrong = await swarm.add()
        await wrong.announce(b"wrong %d" % shift, 60)
        records = {record.body: record for record in await wrong.lookup()}
        assert {b"right", b"wrong %d" % shift} <= set(records)
        left = records[b"right"].expiry - clock.time()
        assert 40 < left <= 61, "expiry is told in the reader's own clock"
        shift_s[0] = 0.0
        assert b"wrong %d" % shift in {record.body for record in await bob.lookup()}


async def test_many_peers_find_each_other(swarm):
    peers = [await swarm.add() for _ in range(8)]
    await asyncio.gather(*(peer.announce(b"%d" % number, 60) for number, peer in enumerate(peers)))
    for peer in peers[::3]:
        assert len(await peer.lookup()) == len(peers)
    table = swarm.node.protocol.routing_table
    assert len(table.peers()) == len(peers)


async def test_nobody_at_the_bootstrap_address():
    async with open_host(HostConfig()) as gone:
        maddrs = gone.maddrs
    async with open_host(HostConfig()) as host:
        with pytest.raises(JoinError, match="No bootstrap node answers"):
            async with open_directory(host, host.identity, Invite("default", "demo", maddrs), ""):
                pytest.fail("joined nobody")


async def test_a_large_shard_is_read_within_the_wires_limit(swarm):
    """512 peers under one key, all with full records: the reply stays under the daemon's 4 MiB and is complete."""
    namespace = Invite("default", "demo", ()).namespace
    now, keys = swarm.node.now(), [shard_key(namespace, shard) for shard in range(SHARDS)]
    count = 0
    while count < 512:
        identity = Identity.generate()
        if (key := record_key(namespace, identity.peer_id)) == keys[0]:
            record = Record(namespace, "demo", "", identity.peer_id, 1, now + 250, b"x" * 1800)
            swarm.node.protocol.store.put(key, identity.peer_id, seal(record, identity), now)
            count += 1
    bob = await swarm.add()
    together = await bob._node.protocol.call_find(swarm.host.p2p.peer_id, keys)
    assert 100 < len(together[0].records) < 512, "all keys at once share the reply"
    (one, *_) = await bob._node.look(*keys)
    assert len(one.records) == 512, "so a look-up asks for so many one by one"


@pytest.mark.calm
async def test_a_dead_daemon_fails_calls_at_once(swarm):
    alice = await swarm.add()
    host = alice._node.host
    hang = asyncio.Event()

    async def never(request: dht_pb2.PingRequest, context) -> dht_pb2.PingResponse:
        await hang.wait()
        return dht_pb2.PingResponse()

    await swarm.host.p2p.add_protobuf_handler("hang", never, dht_pb2.PingRequest)
    to = PeerID.from_base58(swarm.host.peer_id)
    async with asyncio.timeout(40), asyncio.TaskGroup() as tasks:
        call = tasks.create_task(failing_call(host, to))
        await asyncio.sleep(0.2)
        host.p2p._child.kill()
        killed_at = time.monotonic()
        await host.died.wait()
        in_time(time.monotonic() - killed_at < 2)
        await call
        in_time(time.monotonic() - killed_at < 3.8)
    assert not host.p2p.is_alive
    with pytest.raises(P2PDaemonError):
        await host.p2p.call_protobuf_handler(to, "hang", dht_pb2.PingRequest(), dht_pb2.PingResponse)
    hang.set()


async def failing_call(host, to):
    with pytest.raises(P2PDaemonError):
        await host.p2p.call_protobuf_handler(to, "hang", dht_pb2.PingRequest(), dht_pb2.PingResponse)


async def test_a_taken_port_is_one_sentence(swarm):
    port = int(swarm.host.maddrs[0].split("/")[4])
    with pytest.raises(HostError, match=f"Port {port} on 127.0.0.1 is taken; .* choose another port"):
        async with open_host(HostConfig(port=port)):
            pytest.fail("two daemons on one port")


async def test_a_peer_rejoins_when_its_bootstrap_node_returns():
    identity = Identity.generate()
    async with AsyncExitStack() as first:
        bootstrap = await first.enter_async_context(open_host(HostConfig(identity=identity)))
        await first.enter_async_context(open_node(bootstrap))
        maddrs, invite = bootstrap.maddrs, Invite("default", "demo", bootstrap.maddrs)
        async with open_host(HostConfig()) as host, open_directory(host, host.identity, invite, "") as alice:
            await first.aclose()
            await alice.announce(b"to nobody", 60)  # does not fail, and shows that the bootstrap node has gone
            port = int(maddrs[0].split("/")[4])
            async with open_host(HostConfig(identity=identity, port=port)) as again, open_node(again) as node:
                async with asyncio.timeout(15):
                    while not (node.protocol.routing_table.peers() and alice.nodes().answering):
                        await asyncio.sleep(0.1)
                await alice.announce(b"back", 60)
                assert len(node.protocol.store) == 1


async def test_a_second_directory_on_one_host_is_one_sentence(swarm):
    with pytest.raises(HostError, match="already serves one"):
        async with open_node(swarm.host):
            pytest.fail("two nodes on one daemon")
    assert await (await swarm.add()).lookup() == [], "and the first one goes on"
