"""Direct streams: who is at both ends is proved, what is false is refused, and libp2p stands in."""

import asyncio
import contextlib
import os
import socket
import ssl
import time

import pytest
from shoal.dht.host import HostConfig, open_host
from shoal.dht.identity import Identity
from shoal.dht.maddr import direct_maddr, direct_place
from shoal.dht.proof import client_context, peer_id_in
from shoal.peer import direct
from shoal.peer.certificate import server_context
from shoal.peer.direct import GREETING, MAX_GREETED, DirectPort, dial, open_direct_port
from shoal.peer.errors import HopClosed
from shoal.peer.transport import HEAD_START_S, P2PTransport

from tests.steadiness import in_time

pytestmark = pytest.mark.swarm


@contextlib.asynccontextmanager
async def taking(identity):
    """A port that takes direct streams: (its TCP port, a queue of those that were proved)."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        proved = asyncio.Queue()
        task = asyncio.create_task(DirectPort(identity, listening, ()).run(proved.put_nowait))
        try:
            yield listening.getsockname()[1], proved
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def tls_to(port):
    return await asyncio.open_connection("127.0.0.1", port, ssl=client_context(), server_hostname="")


async def is_hung_up(reader, within_s):
    try:
        async with asyncio.timeout(within_s):
            return await reader.read() == b""
    except (ConnectionError, ssl.SSLError):
        return True


async def test_both_ends_know_whom_they_speak_with():
    here, there = Identity.generate(), Identity.generate()
    async with taking(there) as (port, proved):
        ours = await dial(here, there.peer_id, "127.0.0.1", port)
        theirs = await proved.get()
        assert (ours.remote, theirs.remote) == (there.peer_id, here.peer_id)
        ours.write(b"to there")
        theirs.write(b"to here")
        assert await theirs.read() == b"to there"
        assert await ours.read() == b"to here"
        ours.close()
        assert await theirs.read() == b""
        theirs.close()


async def test_somebody_else_at_the_address_is_not_taken_for_the_peer():
    here, there = Identity.generate(), Identity.generate()
    async with taking(there) as (port, proved):
        with pytest.raises(OSError, match="not"):
            await dial(here, Identity.generate().peer_id, "127.0.0.1", port)
        assert proved.empty()


async def test_a_certificate_proves_its_own_peer_and_cannot_be_lent():
    there = Identity.generate()
    _, certificate = server_context(there)
    assert peer_id_in(certificate) == there.peer_id
    for at in (certificate.index(b"\x04\x40") + 10, certificate.index(there.public_bytes) + 3):
        false = bytearray(certificate)
        false[at] ^= 1
        with pytest.raises(ValueError, match="certificate"):
            peer_id_in(bytes(false))
    with pytest.raises(ValueError):  # noqa: PT011 - cryptography's own words
        peer_id_in(b"nonsense")


async def test_a_certificate_of_nobody_is_refused(tmp_path):
    """An honest TLS server that is no peer."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key, name, always = Ed25519PrivateKey.generate(), x509.Name([]), direct_always()
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, *always).sign(key, None)
    file = tmp_path / "both.pem"
    file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + made.public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        with pytest.raises(OSError, match="without a peer's proof"):
            await dial(
                Identity.generate(), Identity.generate().peer_id, "127.0.0.1", server.sockets[0].getsockname()[1]
            )


def direct_always():
    from datetime import UTC, datetime

    return datetime(2020, 1, 1, tzinfo=UTC), datetime(4000, 1, 1, tzinfo=UTC)


async def test_a_caller_that_proves_nothing_is_hung_up_on():
    here, there = Identity.generate(), Identity.generate()
    async with taking(there) as (port, proved):
        heard = []
        honest = await dial(here, there.peer_id, "127.0.0.1", port)
        await proved.get()
        for said in (
            GREETING + here.public_bytes + here.sign(b"something else"),
            b"GET / HT" + here.public_bytes + os.urandom(64),
            GREETING + os.urandom(96),
        ):
            reader, writer = await tls_to(port)
            writer.write(said)
            heard.append(await is_hung_up(reader, 2))
            writer.close()
        assert heard == [True] * 3
        assert proved.empty()
        honest.close()


async def test_a_proof_is_worth_nothing_on_another_connection(monkeypatch):
    """What an honest caller said to this very peer, said again by somebody who has seen it."""
    here, there = Identity.generate(), Identity.generate()
    said = []
    async with taking(there) as (port, proved):
        signed = direct._signed
        monkeypatch.setattr(direct, "_signed", lambda *given: said.append(signed(*given)) or said[-1])
        honest = await dial(here, there.peer_id, "127.0.0.1", port)
        await proved.get()
        reader, writer = await tls_to(port)
        writer.write(GREETING + here.public_bytes + here.sign(said[0]))
        assert await is_hung_up(reader, 2)
        assert proved.empty()
        writer.close()
        honest.close()


@pytest.mark.alone
async def test_callers_who_say_nothing_are_bounded_and_do_not_last(monkeypatch):
    monkeypatch.setattr(direct, "HANDSHAKE_S", 0.5)
    here, there = Identity.generate(), Identity.generate()
    async with taking(there) as (port, proved):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_GREETED)]
        await asyncio.sleep(0.1)
        with pytest.raises(OSError):  # noqa: PT011 - the door is full: whatever TLS makes of a closed connection
            await dial(here, there.peer_id, "127.0.0.1", port)
        for reader, writer in silent:
            assert await is_hung_up(reader, 3)
            writer.close()
        stream = await dial(here, there.peer_id, "127.0.0.1", port)
        assert (await proved.get()).remote == here.peer_id
        stream.close()


@contextlib.asynccontextmanager
async def silent_port():
    """A TCP port where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


async def echo(stream):
    while data := await stream.read():
        stream.write(data)


@pytest.mark.alone
async def test_libp2p_stands_in_where_there_is_no_direct_stream():
    async with open_host(HostConfig()) as ours, open_host(HostConfig()) as theirs, silent_port() as silent:
        ours, there = P2PTransport(ours), P2PTransport(theirs)
        closed = direct_maddr("127.0.0.1", 9, theirs.peer_id)
        mute = direct_maddr("127.0.0.1", silent, theirs.peer_id)
        serving = asyncio.create_task(there.serve(echo))
        await there.serving.wait()
        waits = []
        for addrs in ([closed, *theirs.maddrs], [mute, *theirs.maddrs], [mute, *theirs.maddrs]):
            began = time.monotonic()
            stream = await ours.connect(theirs.peer_id, addrs)
            waits.append(time.monotonic() - began)
            stream.write(b"x")
            assert await stream.read() == b"x"
            stream.close()
        in_time(waits[0] < HEAD_START_S, waits)  # refused at once, and so was libp2p asked
        in_time(HEAD_START_S <= waits[1] < HEAD_START_S + 1.0, waits)
        in_time(waits[2] < HEAD_START_S, waits)  # remembered
        serving.cancel()


async def test_a_direct_stream_needs_no_daemon(tmp_path):
    """Neither to stay nor to begin; and whom nobody reaches at all is one clear error."""
    async with open_host(HostConfig()) as ours, open_host(HostConfig()) as theirs:
        async with open_direct_port(theirs, "127.0.0.1", 0, ()) as port:
            transport, there = P2PTransport(ours), P2PTransport(theirs, port)
            serving = asyncio.create_task(there.serve(echo))
            await there.serving.wait()
            stream = await transport.connect(theirs.peer_id, port.addrs)
            ours.p2p._child.kill()
            await ours.died.wait()
            again = await transport.connect(theirs.peer_id, port.addrs)
            for each in (stream, again):
                each.write(b"still")
                assert await each.read() == b"still"
                each.close()
            serving.cancel()
        with pytest.raises(HopClosed, match="cannot open a stream"):
            await transport.connect(theirs.peer_id, port.addrs)


async def test_where_a_port_is_told_and_that_it_is_the_wanted_one_if_it_can_be():
    async with open_host(HostConfig()) as host:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            wanted = probe.getsockname()[1]
        async with open_direct_port(host, "127.0.0.1", wanted, ()) as port:
            assert [direct_place(addr) for addr in port.addrs] == [("127.0.0.1", wanted)]
            assert port.addrs[0].endswith(f"/tls/p2p/{host.peer_id}")
        with socket.create_server(("127.0.0.1", wanted)):
            async with open_direct_port(host, "127.0.0.1", wanted, ()) as port:
                assert direct_place(port.addrs[0])[1] != wanted
        async with open_direct_port(host, "127.0.0.1", None, ()) as port:
            assert port is None
