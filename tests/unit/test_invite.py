"""Invite tokens: round trip, damage, and what follows from the secret."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from shoal.dht.errors import InviteError
from shoal.dht.identity import peer_id_of
from shoal.dht.invite import PREFIX, Invite, check_maddr

PEER = peer_id_of(bytes(range(32)))  # the same in every process that runs these tests
MADDR = f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}"
PUBLIC = Invite("default", "demo", (MADDR,))
PRIVATE = replace(PUBLIC, secret=b"s" * 32)

names = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=40)
hosts = st.sampled_from(["ip4/10.0.0.1", "ip6/2001:db8::1", "dns/node.example.org", "dns4/a"])
maddrs = st.builds("/{}/tcp/{}/p2p/{}".format, hosts, st.integers(1, 65535), st.just(PEER))
invites = st.builds(
    Invite, names, names, st.lists(maddrs, max_size=5).map(tuple), st.none() | st.binary(min_size=16, max_size=64)
)


@given(invites)
@settings(max_examples=80, deadline=None)
def test_round_trip(invite):
    token = invite.encode()
    assert Invite.parse(token) == invite
    assert Invite.parse(f"  {token}\n") == invite
    assert token.split() == [token], "one word"


@given(invites, st.data())
@settings(max_examples=80, deadline=None)
def test_a_changed_character_is_noticed(invite, data):
    token = invite.encode()
    at = data.draw(st.integers(0, len(token) - 1))
    character = data.draw(st.sampled_from("abcXYZ019-_~é "))
    assume(character != token[at])
    changed = token[:at] + character + token[at + 1 :]
    assume(changed.strip() != token)
    with pytest.raises(InviteError):
        Invite.parse(changed)


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_other_text_gets_a_sentence(text):
    for attempt in (text, PREFIX + text):
        with pytest.raises(InviteError, match=r"\w+ \w+"):
            Invite.parse(attempt)


def test_secret_does_not_show():
    assert "ssss" not in repr(PRIVATE)


@pytest.mark.parametrize(
    "maddr",
    [
        "",
        "127.0.0.1:4001",
        "/ip4/127.0.0.1/tcp/4001",
        f"/ip4/999.0.0.1/tcp/4001/p2p/{PEER}",
        f"/ip4/127.0.0.1/tcp/0/p2p/{PEER}",
        f"/ip4/127.0.0.1/tcp/70000/p2p/{PEER}",
        f"/ip6/127.0.0.1/tcp/1/p2p/{PEER}",
        f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER[:-20]}",
        f"/ip4//tcp/4001/p2p/{PEER}",
        f"/unix/tmp/x/y/z/p2p/{PEER}",
        f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}/",
    ],
)
def test_bad_addresses_are_refused(maddr):
    with pytest.raises(InviteError):
        check_maddr(maddr)
    with pytest.raises(InviteError):
        Invite("default", "demo", (maddr,))


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 201, " padded"])
def test_bad_names_are_refused(name):
    with pytest.raises(InviteError):
        Invite(name, "demo", ())
    with pytest.raises(InviteError):
        Invite("default", name, ())


def test_namespace_depends_on_swarm_model_and_secret_only():
    spaces = {
        PUBLIC.namespace,
        PRIVATE.namespace,
        replace(PRIVATE, secret=b"t" * 32).namespace,
        replace(PUBLIC, swarm="defaultd", model="emo").namespace,
        replace(PUBLIC, model="other").namespace,
    }
    assert len(spaces) == 5
    assert {len(space) for space in spaces} == {32}
    assert replace(PUBLIC, peers=()).namespace == PUBLIC.namespace


def test_proof_binds_client_peer_session_and_secret():
    proof = PRIVATE.prove("client", "peer", b"session")
    assert len(proof) == 32
    assert PRIVATE.check(proof, "client", "peer", b"session")
    for args in (("clientp", "eer", b"session"), ("other", "peer", b"session"), ("client", "peer", b"other")):
        assert not PRIVATE.check(proof, *args)
    assert not replace(PRIVATE, secret=b"t" * 32).check(proof, "client", "peer", b"session")
    assert not PRIVATE.check(b"", "client", "peer", b"session")


def test_public_swarms_need_no_proof():
    assert PUBLIC.prove("client", "peer", b"session") == b""
    assert PUBLIC.check(b"", "client", "peer", b"session")


@given(st.binary(max_size=300), st.binary(max_size=60))
@settings(max_examples=50, deadline=None)
def test_encryption(body, context):
    assert PUBLIC.encrypt(body, context) == body == PUBLIC.decrypt(body, context)
    sealed = PRIVATE.encrypt(body, context)
    assert len(sealed) == len(body) + 28
    assert PRIVATE.decrypt(sealed, context) == body
    with pytest.raises(InviteError):
        PRIVATE.decrypt(sealed, context + b"x")
    with pytest.raises(InviteError):
        replace(PRIVATE, secret=b"t" * 32).decrypt(sealed, context)
    with pytest.raises(InviteError):
        PRIVATE.decrypt(sealed[:-1], context)


def test_short_sealed_text_is_refused():
    for sealed in (b"", b"short", b"x" * 27):
        with pytest.raises(InviteError):
            PRIVATE.decrypt(sealed, b"")
