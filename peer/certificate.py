"""TLS certificates that prove a peer id (`dht.proof`), and contexts to take connections with. Knows no sockets."""

from __future__ import annotations

import ssl
import tempfile
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from shoal.dht.proof import EXTENSION, HEAD, MIDDLE, SIGNED_PREFIX

if TYPE_CHECKING:
    from shoal.dht.identity import Identity

_ALWAYS = datetime(2020, 1, 1, tzinfo=UTC), datetime(4096, 1, 1, tzinfo=UTC)  # clocks are not to be relied on


def server_context(identity: Identity) -> tuple[ssl.SSLContext, bytes]:
    """A context to take connections with, and its certificate (DER). Takes some 2 ms."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = ec.generate_private_key(ec.SECP256R1())
    info = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    proof = HEAD + identity.public_bytes + MIDDLE + identity.sign(SIGNED_PREFIX + info)
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
