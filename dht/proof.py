"""Whether a peer is at an address, proved to us before anything is told to it. Knows no daemon.

As in libp2p's TLS specification: a certificate for a key that lives as long as the process, with an extension in which
the peer's own key signs it. Nobody vouches for anybody: a peer id is its public key.
"""

from __future__ import annotations

import asyncio
import ssl
from functools import cache
from typing import Final

from shoal.dht.identity import KEY_TYPE, PUBLIC_BYTES, SIGNATURE_BYTES, peer_id_of, verify

EXTENSION: Final = "1.3.6.1.4.1.53594.1.1"
SIGNED_PREFIX: Final = b"libp2p-tls-handshake:"
HEAD: Final = b"\x30\x68\x04\x24" + KEY_TYPE  # SEQUENCE of two OCTET STRINGs, the first one a protobuf public key
MIDDLE: Final = b"\x04\x40"
ASKED: Final = b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n"  # and answered in the same words
ANSWER_S: Final = 2.0


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
    public, signature = proof[len(HEAD) : len(HEAD) + PUBLIC_BYTES], proof[-SIGNATURE_BYTES:]
    peer_id = peer_id_of(public)
    info = shown.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    whole = proof == HEAD + public + MIDDLE + signature
    if not whole or not verify(peer_id, signature, SIGNED_PREFIX + info):
        raise ValueError("a certificate with a false proof")
    return peer_id


async def proves(peer_id: str, address: str, port: int) -> bool:
    """Whether a libp2p daemon at an address shows that it is this peer. It does so first, and learns nothing of us."""
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                writer.write(ASKED)
                if await reader.readexactly(len(ASKED)) != ASKED:
                    return False
                await writer.start_tls(client_context(), server_hostname="")
                session: ssl.SSLObject = writer.get_extra_info("ssl_object")
                return peer_id_in(session.getpeercert(binary_form=True) or b"") == peer_id
            finally:
                writer.transport.abort()
    except (OSError, EOFError, ValueError):  # a timeout is an OSError too
        return False
