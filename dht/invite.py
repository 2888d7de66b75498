"""The invite token, and what follows from its secret: namespace, proof of membership, encryption of bodies. Pure.

A token is `shoal1` and the base64url text of length-prefixed fields and a checksum. Knows no network and no records.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import struct
from dataclasses import dataclass, field
from functools import cached_property

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from shoal.dht.errors import InviteError

PREFIX = "shoal1"
MAX_TOKEN_CHARS = 16_384
MAX_NAME_BYTES = 200
MAX_PEERS = 32
MAX_MADDR_CHARS = 300
SECRET_BYTES = range(16, 65)
CHECKSUM_BYTES = 4
NONCE_BYTES = 12
LENGTH = struct.Struct(">H")
PEER_ID = re.compile(r"[1-9A-HJ-NP-Za-km-z]{46,60}")
HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


def check_maddr(maddr: str) -> str:
    """`maddr` itself if it can be dialled, such as `/ip4/192.0.2.1/tcp/4001/p2p/12D3Koo...`; else InviteError."""
    parts = maddr.split("/")
    complete = len(maddr) <= MAX_MADDR_CHARS and len(parts) >= 7 and parts[0] == "" and "" not in parts[1:]
    if not complete or parts[-2] != "p2p" or not PEER_ID.fullmatch(parts[-1]):
        raise InviteError(
            f"{maddr[:80]!r} is not a peer's address; it should look like /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo..."
        )
    kind, host, protocol, port = parts[1:5]
    if not _is_host(kind, host) or protocol not in ("tcp", "udp") or not _is_port(port):
        raise InviteError(f"{maddr[:80]!r} has no host and port that can be dialled; check it for typing errors.")
    return maddr


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65_536


def _is_host(kind: str, host: str) -> bool:
    if kind in ("dns", "dns4", "dns6"):
        return HOST_NAME.fullmatch(host) is not None
    try:
        return kind in ("ip4", "ip6") and ipaddress.ip_address(host).version == int(kind[2:])
    except ValueError:
        return False


@dataclass(frozen=True)
class Invite:
    """Everything that one needs to join a swarm.

    swarm and model: names of 1 to 200 bytes. peers: multiaddrs of bootstrap nodes, each ending in `/p2p/ID`.
    secret: 16 to 64 random bytes for a private swarm, None for a public one. Raises InviteError on anything else.
    """

    swarm: str
    model: str
    peers: tuple[str, ...]
    secret: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for what, name in (("swarm", self.swarm), ("model", self.model)):
            if not _is_name(name):
                raise InviteError(f"A {what}'s name has 1 to {MAX_NAME_BYTES} bytes of printable text.")
        if len(self.peers) > MAX_PEERS:
            raise InviteError(f"An invite names at most {MAX_PEERS} bootstrap addresses.")
        for maddr in self.peers:
            check_maddr(maddr)
        if self.secret is not None and len(self.secret) not in SECRET_BYTES:
            raise InviteError(f"A swarm's secret has {SECRET_BYTES.start} to {SECRET_BYTES.stop - 1} bytes.")

    def encode(self) -> str:
        """The token: letters, digits, `-` and `_` only."""
        payload = _join(self.swarm.encode(), self.model.encode(), self.secret or b"", *(p.encode() for p in self.peers))
        return PREFIX + base64.urlsafe_b64encode(payload + _checksum(payload)).rstrip(b"=").decode()

    @classmethod
    def parse(cls, text: str) -> Invite:
        """Inverse of `encode`; surrounding white space is ignored. InviteError, with a sentence, on anything else."""
        token = text.strip()
        if not token.startswith(PREFIX) or len(token) > MAX_TOKEN_CHARS:
            raise InviteError(f"This is not an invite: one is a single word that begins with {PREFIX!r}.")
        swarm, model, secret, *peers = _split(_payload(token))
        try:
            invite = cls(swarm.decode(), model.decode(), tuple(p.decode() for p in peers), secret or None)
        except UnicodeDecodeError as error:
            raise InviteError("The invite is damaged: a name in it is not text. Ask for it again.") from error
        if invite.encode() != token:
            raise InviteError("The invite is damaged: it is not in its one spelling. Copy it again, whole.")
        return invite

    @cached_property
    def namespace(self) -> bytes:
        """32 bytes that name the swarm in the directory; not to be guessed without the secret."""
        return hmac.digest(
            self.secret or b"", b"shoal namespace v1" + _join(self.swarm.encode(), self.model.encode()), "sha256"
        )

    def prove(self, client_id: str, peer_id: str, session: bytes) -> bytes:
        """32-byte HMAC-SHA256 that shows `client_id` knows the secret, for this session on this peer; b"" if public."""
        if self.secret is None:
            return b""
        return hmac.digest(self._key(b"proof"), _join(client_id.encode(), peer_id.encode(), session), "sha256")

    def check(self, proof: bytes, client_id: str, peer_id: str, session: bytes) -> bool:
        """Whether `proof` is what `prove` gives, in constant time."""
        return hmac.compare_digest(proof, self.prove(client_id, peer_id, session))

    def encrypt(self, body: bytes, context: bytes) -> bytes:
        """28 bytes longer than `body`, readable only with the secret and the same `context`; `body` itself if public.

        ChaCha20-Poly1305 (RFC 8439). The nonce is an HMAC of the content, so nothing random is needed and no nonce
        serves two different bodies.
        """
        if self.secret is None:
            return body
        nonce = hmac.digest(self._key(b"nonce"), _join(context, body), "sha256")[:NONCE_BYTES]
        return nonce + ChaCha20Poly1305(self._key(b"body")).encrypt(nonce, body, context)

    def decrypt(self, sealed: bytes, context: bytes) -> bytes:
        """Inverse of `encrypt`; InviteError if the secret or the context is another, or the text was changed."""
        if self.secret is None:
            return sealed
        nonce, text = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        try:
            return ChaCha20Poly1305(self._key(b"body")).decrypt(nonce, text, context)
        except (InvalidTag, ValueError) as error:
            raise InviteError("A record in this swarm cannot be read with this invite's secret.") from error

    def _key(self, purpose: bytes) -> bytes:
        return hmac.digest(self.secret or b"", b"shoal key v1 " + purpose, "sha256")


def _is_name(name: str) -> bool:
    return name.isprintable() and name == name.strip() and 1 <= len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(b"shoal invite v1" + payload).digest()[:CHECKSUM_BYTES]


def _join(*fields: bytes) -> bytes:
    return b"".join(LENGTH.pack(len(item)) + item for item in fields)


def _split(payload: bytes) -> list[bytes]:
    fields, at = [], 0
    while at + LENGTH.size <= len(payload):
        start = at + LENGTH.size
        at = start + int(LENGTH.unpack_from(payload, at)[0])
        fields.append(payload[start:at])
    if at != len(payload) or len(fields) < 3:
        raise InviteError("The invite is damaged: its parts do not add up. Copy it again, whole.")
    return fields


def _payload(token: str) -> bytes:
    text = token.removeprefix(PREFIX)
    try:
        raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise InviteError(
            "The invite is damaged: it holds characters that do not belong in it. Copy it again, whole."
        ) from error
    payload, checksum = raw[:-CHECKSUM_BYTES], raw[-CHECKSUM_BYTES:]
    if not hmac.compare_digest(checksum, _checksum(payload)):
        raise InviteError("The invite is damaged: its checksum is wrong. Copy it again, whole.")
    return payload
