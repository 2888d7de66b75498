"""A peer's Ed25519 key: made, stored, loaded, used to sign; and peer ids, which contain the public key. No network.

Formats: the libp2p peer-id specification. A key file is the protobuf `PrivateKey{Ed25519, seed || public}`; a peer id
is the base58 text of the identity multihash of the protobuf `PublicKey{Ed25519, public}`: so it begins with `12D3Koo`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from shoal.dht.errors import IdentityError

if TYPE_CHECKING:
    from pathlib import Path

KEY_FILE_HEADER = b"\x08\x01\x12\x40"  # field 1: key type 1 (Ed25519); field 2: 64 bytes
KEY_TYPE = b"\x08\x01\x12\x20"  # key type 1; 32 bytes
PEER_ID_HEADER = b"\x00\x24" + KEY_TYPE  # multihash "identity", 36 bytes
SEED_BYTES = 32
PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64
MAX_PEER_ID_CHARS = 60
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def base58_encode(raw: bytes) -> str:
    """Text of `raw` in the Bitcoin alphabet; a leading zero byte becomes a leading `1`."""
    number, digits = int.from_bytes(raw, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        digits = BASE58[digit] + digits
    return "1" * (len(raw) - len(raw.lstrip(b"\x00"))) + digits


def base58_decode(text: str) -> bytes:
    """Inverse of `base58_encode`; IdentityError on a foreign character. Quadratic: bound the length first."""
    number = 0
    for character in text:
        digit = BASE58.find(character)
        if digit < 0:
            raise IdentityError(f"{character!r} does not belong in a peer id.")
        number = number * 58 + digit
    body = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return b"\x00" * (len(text) - len(text.lstrip("1"))) + body


def peer_id_of(public_key: bytes) -> str:
    """Peer id of a raw 32-byte Ed25519 public key."""
    return base58_encode(PEER_ID_HEADER + public_key)


def public_bytes_of(peer_id: str) -> bytes:
    """The raw 32-byte public key in a peer id; IdentityError if it is not an Ed25519 peer id in its one spelling."""
    raw = base58_decode(peer_id) if len(peer_id) <= MAX_PEER_ID_CHARS else b""
    public = raw.removeprefix(PEER_ID_HEADER)
    if len(public) != PUBLIC_BYTES or peer_id_of(public) != peer_id:
        raise IdentityError(f"{peer_id[:MAX_PEER_ID_CHARS]!r} is not the id of a peer with an Ed25519 key.")
    return public


def verify(peer_id: str, signature: bytes, message: bytes) -> bool:
    """Whether `peer_id`'s own key made `signature` over `message` (RFC 8032). Never raises on bad input."""
    try:
        return verify_by(public_bytes_of(peer_id), signature, message)
    except IdentityError:
        return False


def verify_by(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """As `verify`, for the raw 32-byte key itself."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Identity:
    """A private key and the peer id that follows from it. Two identities are equal when their peer ids are."""

    peer_id: str
    _key: Ed25519PrivateKey = field(repr=False, compare=False)

    @classmethod
    def generate(cls) -> Identity:
        """A fresh identity from the system's random source."""
        return cls._of(Ed25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, raw: bytes) -> Identity:
        """Read the 68-byte libp2p key format; IdentityError if it is another kind of key or damaged."""
        pair = raw.removeprefix(KEY_FILE_HEADER)
        if len(pair) != SEED_BYTES + PUBLIC_BYTES or len(raw) == len(pair):
            raise IdentityError(
                "This is not an Ed25519 key in libp2p's format; move the file away to have a new key made."
            )
        identity = cls._of(Ed25519PrivateKey.from_private_bytes(pair[:SEED_BYTES]))
        if public_bytes_of(identity.peer_id) != pair[SEED_BYTES:]:
            raise IdentityError("The two halves of this key do not belong together; restore the file from a backup.")
        return identity

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read a key file; IdentityError with a sentence if it is absent, unreadable or damaged."""
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise IdentityError(f"Cannot read the identity file {path}: {error.strerror}.") from error
        try:
            return cls.from_bytes(raw)
        except IdentityError as error:
            raise IdentityError(f"Identity file {path}: {error}") from error

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """The identity stored at `path`, made and saved there first if the file is absent."""
        if not path.exists():
            with contextlib.suppress(FileExistsError):  # another process was quicker: use its key
                cls.generate().save(path)
        return cls.load(path)

    @property
    def public_bytes(self) -> bytes:
        """The raw 32-byte public key."""
        return public_bytes_of(self.peer_id)

    def to_bytes(self) -> bytes:
        """The 68 bytes of libp2p's key file."""
        return KEY_FILE_HEADER + self._key.private_bytes_raw() + self._key.public_key().public_bytes_raw()

    def save(self, path: Path) -> None:
        """Write the key file, readable by its owner only, whole or not at all; FileExistsError if there is one."""
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.touch(mode=0o600, exist_ok=False)
            partial.write_bytes(self.to_bytes())
            os.link(partial, path)
        except FileExistsError:
            raise
        except OSError as error:
            raise IdentityError(f"Cannot write the identity file {path}: {error.strerror}.") from error
        finally:
            partial.unlink(missing_ok=True)

    def sign(self, message: bytes) -> bytes:
        """64-byte Ed25519 signature (RFC 8032) over `message`."""
        return self._key.sign(message)

    @classmethod
    def _of(cls, key: Ed25519PrivateKey) -> Identity:
        return cls(peer_id_of(key.public_key().public_bytes_raw()), key)
