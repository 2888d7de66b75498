"""Multiaddrs in libp2p's binary form."""

from __future__ import annotations

import pytest
from shoal.dht.host import listen_for
from shoal.dht.identity import Identity
from shoal.dht.maddr import endpoint, is_relayed, pack
from shoal.dht.nearby import in_our_network
from shoal.dht.reach import MAX_ADDRS_CHARS, DialBack, reach_of, shareable


def test_a_direct_address_is_packed_as_the_table_of_codes_says():
    assert pack("/ip4/192.0.2.1/tcp/4001").to_bytes().hex() == "04c0000201060fa1"
    assert pack("/ip6/::1/tcp/1").to_bytes().hex() == "29" + "00" * 15 + "01" + "060001"


def test_a_way_through_a_relay_holds_its_id_as_a_multihash():
    identity = Identity.generate()
    packed = pack(f"/ip4/192.0.2.1/tcp/4001/p2p/{identity.peer_id}/p2p-circuit").to_bytes()
    head, tail = bytes.fromhex("04c0000201060fa1" + "a503" + "26" + "0024" + "08011220"), bytes.fromhex("a202")
    assert packed.startswith(head)
    assert packed.endswith(tail)
    assert len(packed) == len(head) + 32 + len(tail)


@pytest.mark.parametrize("maddr", ["/ip4/192.0.2.1/tcp/1/p2p/QmX/p2p/QmY/p2p-circuit", "/ip4/192.0.2.1/tcp/1/p2p/QmX"])
def test_what_cannot_be_dialled_is_refused(maddr):
    with pytest.raises(ValueError, match="is not the address"):
        pack(maddr)


def test_endpoints_are_those_of_direct_addresses():
    assert endpoint("/ip4/192.0.2.1/tcp/4001/p2p/X") == ("192.0.2.1", 4001)
    assert endpoint("/ip6/::1/tcp/1") == ("::1", 1)
    for other in (
        "/ip4/192.0.2.1/udp/4001/quic-v1",
        "/dns4/a.example/tcp/1",
        "/ip4/192.0.2.1",
        "",
        "/ip4/1.2.3.4/tcp/x",
    ):
        assert endpoint(other) is None
    relayed = "/ip4/192.0.2.1/tcp/4001/p2p/X/p2p-circuit/p2p/Y"
    assert is_relayed(relayed)
    assert endpoint(relayed) is None


def test_one_that_got_through_is_proof_and_silence_is_none():
    assert reach_of([DialBack(False, "a"), DialBack(True, "b")]) == "open"
    assert reach_of([DialBack(False, "a")]) == "closed"
    assert reach_of([]) == "unknown"


def test_addresses_leave_room_for_the_rest_of_an_announcement():
    long = [f"/ip4/192.0.2.{n}/tcp/4001/p2p/{'X' * 52}/p2p-circuit/p2p/{'Y' * 52}" for n in range(9)]
    kept = shareable(long)
    assert 0 < sum(map(len, kept)) <= MAX_ADDRS_CHARS
    assert kept == tuple(long[: len(kept)])
    assert len(shareable([f"/ip4/192.0.2.{n}/tcp/1" for n in range(20)])) == 8


def test_the_way_through_a_relay_is_told_however_many_other_addresses_there_are():
    here = ["/ip4/127.0.0.1/tcp/1/p2p/Y", "/ip6/::1/tcp/1/p2p/Y"]
    local = [f"/ip4/172.17.{n}.1/tcp/1/p2p/Y" for n in range(12)]
    relayed = f"/ip4/192.0.2.1/tcp/4001/p2p/{'X' * 52}/p2p-circuit/p2p/Y"
    assert shareable([*here, *local, relayed]) == (relayed, *local[:7])
    assert shareable(here) == tuple(here)  # a swarm on one machine


def test_a_neighbour_is_one_in_the_same_private_network():
    ours = ["/ip4/127.0.0.1/tcp/1/p2p/X", "/ip4/192.168.1.2/tcp/1/p2p/X", "/ip4/192.0.2.1/tcp/4001/p2p/R/p2p-circuit"]
    near = "/ip4/192.168.1.3/tcp/7/p2p/Y"
    others = (
        "/ip4/192.168.2.3/tcp/7/p2p/Y", "/ip4/192.168.1.2/tcp/7/p2p/Y", "/ip4/127.0.0.1/tcp/7/p2p/Y",
        "/ip4/11.0.0.1/tcp/7/p2p/Y", "/ip4/192.0.2.1/tcp/4001/p2p/R/p2p-circuit/p2p/Y", "/ip6/fd00::1/tcp/7/p2p/Y",
    )  # fmt: skip
    assert in_our_network([*others, near], ours) == [near]
    assert in_our_network([near], ["/ip4/11.0.1.1/tcp/1/p2p/X"]) == []


@pytest.mark.parametrize(
    ("where", "nodes"),
    [
        ("127.0.0.1", ()),
        ("127.0.0.1", ("/ip4/127.0.0.1/tcp/1/p2p/X",)),
        ("127.0.0.1", ("/ip6/::1/tcp/1/p2p/X", "/ip4/127.0.0.1/tcp/1/p2p/X")),
        ("::1", ("/ip6/::1/tcp/1/p2p/X",)),
        ("::", ("/ip6/2001:db8::1/tcp/1/p2p/X", "/ip6/::1/tcp/1/p2p/X")),
        ("::", ("/dns6/a.example/tcp/1/p2p/X",)),
        ("0.0.0.0", ("/ip6/2001:db8::1/tcp/1/p2p/X", "/ip4/192.0.2.1/tcp/1/p2p/X")),
        ("0.0.0.0", ("/dns/a.example/tcp/1/p2p/X",)),
    ],
)
def test_by_default_one_listens_where_the_swarms_nodes_can_dial(where, nodes):
    assert listen_for(nodes) == where
