"""TLS certificates that prove a peer id, and contexts for them. Knows no sockets.

As in libp2p's TLS specification: a certificate for a key that lives as long as the process, with an extension in which
the peer's own key signs it. Nobody vouches for anybody: a peer id is its public key.
"""

from __future__ import annotations

import ssl
import tempfile
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

from shoal.dht.identity import KEY_TYPE, PUBLIC_BYTES, SIGNATURE_BYTES, peer_id_of, verify

if TYPE_CHECKING:
    from shoal.dht.identity import Identity

EXTENSION = "1.3.6.1.4.1.53594.1.1"
SIGNED_PREFIX = b"libp2p-tls-handshake:"
_HEAD = b"\x30\x68\x04\x24" + KEY_TYPE  # SEQUENCE of two OCTET STRINGs, the first one a protobuf public key
_MIDDLE = b"\x04\x40"
_ALWAYS = datetime(2020, 1, 1, tzinfo=UTC), datetime(4096, 1, 1, tzinfo=UTC)  # clocks are not to be relied on


def server_context(identity: Identity) -> tuple[ssl.SSLContext, bytes]:
    """A context to take connections with, and its certificate (DER). Takes some 2 ms."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = ec.generate_private_key(ec.SECP256R1())
    info = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    proof = _HEAD + identity.public_bytes + _MIDDLE + identity.sign(SIGNED_PREFIX + info)
    nobody = x509.Name([])
    builder = x509.CertificateBuilder(nobody, nobody, key.public_key(), x509.random_serial_number(), *_ALWAYS)
    builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(EXTENSION), proof), critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # connections are never resumed
    with tempfile.NamedTemporaryFile() as file:  # it takes files alone; this one is ours, and gone at once
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        file.write(certificate.public_bytes(Encoding.PEM))
        file.flush()
        context.load_cert_chain(file.name)
    return context, certificate.public_bytes(Encoding.DER)


@cache
def client_context() -> ssl.SSLContext:
    """A context to begin connections with; whom they lead to is for the caller to check, with `peer_id_in`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def peer_id_in(certificate: bytes) -> str:
    """The peer id that a certificate (DER) proves. Errors: `ValueError` if it proves none."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        shown = x509.load_der_x509_certificate(certificate)
        proof = shown.extensions.get_extension_for_oid(x509.ObjectIdentifier(EXTENSION)).value.public_bytes()
    except (x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise ValueError("a certificate without a peer's proof") from error
    public, signature = proof[len(_HEAD) : len(_HEAD) + PUBLIC_BYTES], proof[-SIGNATURE_BYTES:]
    peer_id = peer_id_of(public)
    info = shown.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    whole = proof == _HEAD + public + _MIDDLE + signature
    if not whole or not verify(peer_id, signature, SIGNED_PREFIX + info):
        raise ValueError("a certificate with a false proof")
    return peer_id
