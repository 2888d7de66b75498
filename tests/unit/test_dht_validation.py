"""What one node keeps for others, whom it lists, and what time it takes it to be: pure rules, no network."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.dht.clock import SwarmClock
from shoal.dht.envelope import Envelope
from shoal.dht.errors import RecordError
from shoal.dht.identity import Identity
from shoal.dht.keys import SHARDS, network_of, node_key, record_key, shard_key, shard_of
from shoal.dht.record import Record, seal
from shoal.dht.store import MAX_RECORDS_PER_KEY, RecordStore, digest_of

ME, OTHER = Identity.generate(), Identity.generate()
NOW = 1_800_000_000.0
SPACE = b"n" * 32
MINE = Record(SPACE, "demo", "", ME.peer_id, 10, NOW + 60, b"body")
KEY = record_key(SPACE, ME.peer_id)


def put(
    store: RecordStore, record: Record, identity: Identity = ME, now: float = NOW, *, by_owner: bool = False
) -> Record:
    key, raw = record_key(record.namespace, record.peer_id), seal(record, identity)
    return store.put(key, record.peer_id, raw, now, by_owner=by_owner)


def test_a_record_is_kept_until_it_expires():
    store = RecordStore()
    put(store, MINE)
    assert store.get(KEY, NOW + 59) == [seal(MINE, ME)]
    assert store.get(KEY, NOW + 61) == []
    assert store.get(b"k" * 20, NOW) == []


def test_records_are_asked_for_by_their_digests():
    store, theirs = RecordStore(), replace(MINE, peer_id=OTHER.peer_id, expiry=NOW + 20)
    put(store, MINE)
    put(store, theirs, OTHER)
    mine, other = seal(MINE, ME), seal(theirs, OTHER)
    held = {key: store.digests(key, NOW) for key in {KEY, record_key(SPACE, OTHER.peer_id)}}
    assert sorted(digest for digests in held.values() for digest in digests) == sorted(map(digest_of, (mine, other)))
    assert store.some(KEY, frozenset({digest_of(mine)}), NOW) == [mine]
    assert store.some(KEY, frozenset({digest_of(b"else")}), NOW) == []
    assert digest_of(other) not in store.digests(record_key(SPACE, OTHER.peer_id), NOW + 30)


def test_only_a_higher_sequence_replaces():
    store = RecordStore()
    put(store, MINE)
    put(store, MINE)  # a repeat is welcome: it is the same record
    for stale in (replace(MINE, sequence=9, expiry=NOW + 200), replace(MINE, body=b"changed", expiry=NOW + 200)):
        with pytest.raises(RecordError, match="older"):
            put(store, stale)
    put(store, replace(MINE, sequence=11, expiry=NOW + 20))
    assert store.get(KEY, NOW) == [seal(replace(MINE, sequence=11, expiry=NOW + 20), ME)]
    assert len(store) == 1


def test_nobody_outlives_or_overwrites_another():
    store = RecordStore()
    put(store, MINE)
    forged = bytearray(seal(MINE, ME))
    forged[76:84] = seal(replace(MINE, expiry=NOW + 299), ME)[76:84]  # a longer life under the old signature
    with pytest.raises(RecordError, match="signature"):
        store.put(KEY, ME.peer_id, bytes(forged), NOW)
    theirs = seal(replace(MINE, peer_id=OTHER.peer_id, sequence=99), OTHER)
    with pytest.raises(RecordError, match="not its own"):
        store.put(KEY, ME.peer_id, theirs, NOW)
    assert store.get(KEY, NOW) == [seal(MINE, ME)]


def test_a_record_lies_only_under_its_own_key():
    store = RecordStore()
    for key in (b"k" * 20, shard_key(SPACE, (shard_of(ME.peer_id) + 1) % SHARDS), record_key(b"o" * 32, ME.peer_id)):
        with pytest.raises(RecordError, match="not its own"):
            store.put(key, ME.peer_id, seal(MINE, ME), NOW)
    assert len(store) == 0


def of_one_shard(count: int) -> list[tuple[Record, Identity]]:
    """Peers' records that all lie under KEY."""
    made: list[tuple[Record, Identity]] = []
    while len(made) < count:
        identity = Identity.generate()
        if shard_of(identity.peer_id) == shard_of(ME.peer_id):
            made.append((Record(SPACE, "demo", "", identity.peer_id, 1, NOW + 60, b""), identity))
    return made


def test_a_key_has_room_for_512_peers_and_makes_room_when_they_expire(monkeypatch):
    from shoal.dht import store as module

    monkeypatch.setattr(module, "MAX_RECORDS_PER_KEY", 3)
    assert MAX_RECORDS_PER_KEY == 512
    store, offers = RecordStore(), of_one_shard(4)
    for record, identity in offers[:3]:
        put(store, record, identity)
    late, its = offers[3]
    with pytest.raises(RecordError, match="no room"):
        put(store, late, its)
    put(store, replace(offers[0][0], sequence=2), offers[0][1])  # those inside may still renew
    put(store, replace(late, expiry=NOW + 200), its, now=NOW + 100)
    assert len(store) == 1


@pytest.mark.parametrize("limit", ["MAX_RECORDS_PER_KEY", "MAX_RECORDS"])
def test_who_is_here_takes_the_place_of_those_whom_others_brought(monkeypatch, limit):
    from shoal.dht import store as module

    monkeypatch.setattr(module, limit, 3)
    store, offers = RecordStore(), of_one_shard(5)
    (mine, me), *ghosts = offers[:3]
    put(store, mine, me, by_owner=True)
    put(store, replace(mine, sequence=2), me)  # passed on by another: it has been here all the same
    for ghost in ghosts:
        put(store, *ghost)
    for record, identity in offers[3:]:
        with pytest.raises(RecordError, match="no room"):
            put(store, record, identity)
        put(store, record, identity, by_owner=True)
    own = [replace(mine, sequence=2), offers[3][0], offers[4][0]]
    assert store.get(KEY, NOW) == [seal(*each) for each in zip(own, (me, offers[3][1], offers[4][1]), strict=True)]
    late, its = of_one_shard(1)[0]
    with pytest.raises(RecordError, match="no room"):
        put(store, late, its, by_owner=True)
    assert len(store) == 3


def test_places_are_spread_and_follow_from_the_peer_id():
    shards = {shard_of(Identity.generate().peer_id) for _ in range(200)}
    assert shards == set(range(SHARDS))
    assert len({shard_key(SPACE, shard) for shard in range(SHARDS)}) == SHARDS
    assert node_key(b"a") != node_key(b"b")


@pytest.mark.parametrize(
    ("maddr", "network"),
    [
        ("/ip4/8.8.4.4/tcp/1", "8.8.4.0/24"),
        ("/ip4/8.8.4.200/udp/1/quic-v1", "8.8.4.0/24"),
        ("/ip6/2606:4700:1:2::3/tcp/1", "2606:4700:1::/48"),
        ("/ip4/8.8.4.4/tcp/1/p2p/X/p2p-circuit", "8.8.4.0/24"),
        ("/ip4/127.0.0.1/tcp/1", None),
        ("/ip4/192.168.1.1/tcp/1", None),
        ("/ip6/::1/tcp/1", None),
        ("/ip6/fe80::1/tcp/1", None),
        ("/dns4/example.org/tcp/1", None),
        ("/ip4/nonsense/tcp/1", None),
        ("", None),
    ],
)
def test_networks(maddr, network):
    assert network_of(maddr) == network


def _table():
    from shoal.dht.foreign import DHTID, PeerID
    from shoal.dht.table import LimitedTable

    def node(number: int):
        return DHTID.from_bytes(hashlib.sha1(str(number).encode()).digest()), PeerID(number.to_bytes(34, "big"))

    return LimitedTable(node(0)[0], bucket_size=20, depth_modulo=5), node


def test_one_network_cannot_fill_the_table():
    table, node = _table()
    for number in range(1, 2000):
        table.admit(*node(number), "203.0.113.0/24")
    assert len(table.peers()) <= 10
    for number in range(2000, 2020):
        table.admit(*node(number), f"198.51.{number}.0/24")
    assert sum(its != "203.0.113.0/24" for its in table._networks.values()) == 20, "others still find room"
    for bucket in table.buckets:
        crowd = [its for its in bucket.nodes_to_peer_id if table._networks[its] == "203.0.113.0/24"]
        assert len(crowd) <= 2


def test_local_networks_are_exempt_and_the_table_stays_bounded():
    table, node = _table()
    for number in range(1, 3000):
        table.admit(*node(number), None)
    assert 100 < len(table.peers()) < 2 * 20 * len(table.buckets) + 1
    assert max(len(bucket.replacement_nodes) for bucket in table.buckets) <= 20
    for node_id in list(table.uid_to_peer_id):
        del table[node_id]
    assert not table.peers()
    assert not table._networks


def test_the_same_clock_is_left_alone():
    clock = SwarmClock(NOW, 50.0, "a")
    clock.observe("a", NOW + 2.0, 50.0)
    assert clock.now(60.0) == NOW + 10
    assert clock.offset_s == 0


def test_a_wrong_clock_follows_the_majority():
    clock = SwarmClock(NOW + 600, 50.0, ("a", "b", "liar"))
    for peer, wall in (("a", NOW), ("b", NOW + 0.5), ("liar", NOW + 1e6)):
        clock.observe(peer, wall, 50.0)
    assert abs(clock.now(60.0) - NOW - 10) < 1


def test_strangers_move_the_clock_of_nobody_who_knows_better():
    first, guided, orphan = (SwarmClock(NOW, 0.0, guides) for guides in ((), ("guide",), ("guide",)))
    guided.observe("guide", NOW + 60, 0.0)
    for number in range(100):  # more than are remembered
        for clock in (first, guided):
            clock.observe(f"stranger {number}", NOW + 3600, 0.0)
    assert (first.offset_s, guided.offset_s) == (0.0, 60.0)
    for number in range(2):
        orphan.observe(f"remembered {number}", NOW + 60, 0.0)
    assert orphan.offset_s == 0.0
    orphan.observe("liar", NOW + 1e6, 0.0)
    assert orphan.offset_s == 60.0


@pytest.mark.parametrize("wall", [float("nan"), float("inf"), -1.0, 0.0, 1e300])
def test_absurd_times_are_ignored(wall):
    clock = SwarmClock(NOW, 0.0, "a")
    clock.observe("a", wall, 0.0)
    assert clock.now(1.0) == NOW + 1


PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=64)


@given(st.binary(min_size=8, max_size=8), st.text(max_size=16), PRINTABLE, st.binary(max_size=100))
@settings(max_examples=60, deadline=None)
def test_envelope_round_trip(run, maddr, revision, body):
    envelope = Envelope(run, maddr, revision, body)
    assert Envelope.decode(envelope.encode()) == envelope


@pytest.mark.parametrize("revision", ["\x1b[2J", "a\nb", "main\x7f", "m\u202eniam"])
def test_a_revision_that_rules_a_terminal_is_refused(revision):
    with pytest.raises(RecordError):
        Envelope.decode(Envelope(b"r" * 8, "", revision, b"").encode())


@given(st.binary(max_size=60))
@settings(max_examples=150, deadline=None)
def test_a_damaged_envelope_is_a_record_error(raw):
    try:
        envelope = Envelope.decode(raw)
    except RecordError:
        return
    assert envelope.encode() == raw


def test_packed_records_survive_and_broken_ones_do_not():
    from shoal.dht.packing import pack, unpack

    records = [b"a", b"bb" * 500, b""]
    assert unpack(pack(records, 10_000)) == records
    assert len(unpack(pack([b"x" * 2048] * 100, 2050 * 7))) == 7, "a random choice that fits"
    for broken in (b"\x00", b"\x00\x05abc", b"\x00\x01a\xff\xff", b"\x00\x00" * 513):
        with pytest.raises(ValueError, match=r"record|length"):
            unpack(broken)
