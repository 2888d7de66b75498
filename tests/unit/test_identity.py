"""Keys and peer ids: round trips, permissions, damage."""

import hashlib
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.dht.errors import IdentityError
from shoal.dht.identity import Identity, base58_decode, base58_encode, public_bytes_of, verify

# The Ed25519 example of the libp2p peer-id specification.
SPEC_KEY = bytes.fromhex(
    "080112407e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d"
    "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
)


@given(st.binary(max_size=40))
@settings(max_examples=100, deadline=None)
def test_base58_round_trip(raw: bytes):
    assert base58_decode(base58_encode(raw)) == raw


def test_specification_key():
    identity = Identity.from_bytes(SPEC_KEY)
    public = public_bytes_of(identity.peer_id)
    assert public == SPEC_KEY[-32:]
    assert identity.peer_id.startswith("12D3KooW")
    assert identity.to_bytes() == SPEC_KEY


def test_signature_binds_message_and_signer():
    ours, theirs = Identity.generate(), Identity.generate()
    signature = ours.sign(b"message")
    assert verify(ours.peer_id, signature, b"message")
    assert not verify(ours.peer_id, signature, b"massage")
    assert not verify(theirs.peer_id, signature, b"message")
    assert not verify(ours.peer_id, signature[:-1], b"message")
    assert not verify("not a peer id", signature, b"message")


@pytest.mark.parametrize(
    "text", ["", "12D3KooW", "0" * 52, "1" * 5000, "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"]
)
def test_foreign_peer_ids_are_refused(text: str):
    with pytest.raises(IdentityError):
        public_bytes_of(text)


def test_peer_id_has_one_spelling():
    peer_id = Identity.generate().peer_id
    with pytest.raises(IdentityError):
        public_bytes_of("1" + peer_id)


def test_file_is_private_and_kept(tmp_path):
    path = tmp_path / "keys" / "peer.key"
    made = Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Identity.load_or_create(path) == made == Identity.load(path)
    assert list(path.parent.iterdir()) == [path], "nothing half-written may stay"


def test_save_never_overwrites(tmp_path):
    path = tmp_path / "peer.key"
    Identity.generate().save(path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        Identity.generate().save(path)
    assert path.read_bytes() == before


def test_damaged_files_get_a_sentence(tmp_path):
    path = tmp_path / "peer.key"
    with pytest.raises(IdentityError, match="Cannot read"):
        Identity.load(path)
    for damaged in (b"", SPEC_KEY[:-1], b"\x08\x00" + SPEC_KEY[2:], SPEC_KEY[:-1] + b"\x00"):
        path.write_bytes(damaged)
        with pytest.raises(IdentityError, match=r"peer\.key"):
            Identity.load(path)


def test_key_does_not_show_in_repr():
    identity = Identity.from_bytes(SPEC_KEY)
    assert "7e0830" not in repr(identity)
    assert hashlib.sha256(SPEC_KEY).hexdigest() not in repr(identity)
    assert "_key" not in repr(identity)
