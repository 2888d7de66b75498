"""Streams between real daemons: bytes, back-pressure, closing, and peers that die."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest
from shoal.dht.host import HostConfig, open_host
from shoal.dht.identity import Identity
from shoal.peer.direct import open_direct_port
from shoal.peer.errors import HopClosed
from shoal.peer.streams import QUEUE_HIGH_BYTES, READ_CHUNK_BYTES
from shoal.peer.transport import P2PTransport

from tests.steadiness import in_time

pytestmark = [pytest.mark.swarm, pytest.mark.calm]

ECHO_PEER = Path(__file__).parent / "echo_peer.py"


@asynccontextmanager
async def serving(transport, on_stream):
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(transport.serve(on_stream))
        await transport.serving.wait()
        try:
            yield
        finally:
            task.cancel()


@pytest.fixture(params=["libp2p", "direct"])
async def pair(request):
    """Two transports on daemons of their own, joined through libp2p or directly: (ours, theirs, their addresses)."""
    async with open_host(HostConfig()) as ours, open_host(HostConfig()) as theirs:
        if request.param == "libp2p":
            yield P2PTransport(ours), P2PTransport(theirs), theirs.maddrs
        else:
            async with open_direct_port(theirs, "127.0.0.1", 0, ()) as port:
                yield P2PTransport(ours), P2PTransport(theirs, port), port.addrs


async def exactly(stream, count):
    received = bytearray()
    while len(received) < count:
        chunk = await stream.read()
        assert chunk, "the stream ended early"
        assert len(chunk) <= READ_CHUNK_BYTES
        received += chunk
    assert len(received) == count
    return bytes(received)


async def echo(stream):
    while data := await stream.read():
        stream.write(data)
        await stream.drain()


async def test_bytes_arrive_whole_and_in_order(pair):
    ours, theirs, maddrs = pair
    async with serving(theirs, echo):
        stream = await ours.connect(theirs.peer_id, maddrs)
        assert stream.remote == theirs.peer_id
        for size in (1, 2_000, 16_384, 300_000):
            payload = os.urandom(size)
            stream.write(b"head", bytearray(payload[: size // 2]), memoryview(payload)[size // 2 :])
            assert await exactly(stream, size + 4) == b"head" + payload
        stream.close()


async def test_the_remote_is_authenticated(pair):
    ours, theirs, maddrs = pair
    seen = asyncio.get_running_loop().create_future()

    async def note(stream):
        seen.set_result(stream.remote)

    async with serving(theirs, note):
        stream = await ours.connect(theirs.peer_id, maddrs)
        stream.write(b"x")
        assert await seen == ours.peer_id
        stream.close()


async def test_closing_is_seen_by_the_other_side(pair):
    ours, theirs, maddrs = pair
    ended = asyncio.Event()

    async def until_end(stream):
        while await stream.read():
            pass
        ended.set()

    async with serving(theirs, until_end):
        stream = await ours.connect(theirs.peer_id, maddrs)
        stream.write(b"x" * 100)
        stream.close()
        stream.close()  # again does no harm
        async with asyncio.timeout(2):
            await ended.wait()
        assert await stream.read() == b""
        stream.write(b"ignored")
        with pytest.raises(HopClosed):
            await stream.drain()


async def test_what_was_queued_before_closing_arrives(pair):
    ours, theirs, maddrs = pair
    got = asyncio.get_running_loop().create_future()

    async def collect(stream):
        received = bytearray()
        while chunk := await stream.read():
            received += chunk
        got.set_result(len(received))

    async with serving(theirs, collect):
        stream = await ours.connect(theirs.peer_id, maddrs)
        stream.write(bytes(3_000_000))
        stream.close()
        async with asyncio.timeout(5):
            assert await got == 3_000_000


async def test_a_stream_ends_when_its_server_returns(pair):
    ours, theirs, maddrs = pair

    async def hang_up(stream):
        await stream.read()

    async with serving(theirs, hang_up):
        stream = await ours.connect(theirs.peer_id, maddrs)
        stream.write(b"x")
        async with asyncio.timeout(2):
            assert await stream.read() == b""


async def test_one_failing_stream_does_not_end_the_others(pair, caplog):
    ours, theirs, maddrs = pair

    async def fail_or_echo(stream):
        first = await stream.read()
        if first == b"fail":
            raise RuntimeError("on purpose")
        stream.write(first)
        await stream.drain()
        await echo(stream)

    async with serving(theirs, fail_or_echo):
        good = await ours.connect(theirs.peer_id, maddrs)
        bad = await ours.connect(theirs.peer_id, maddrs)
        bad.write(b"fail")
        assert await bad.read() == b""
        good.write(b"still here")
        assert await exactly(good, 10) == b"still here"
        good.close()
    assert "on purpose" in caplog.text


async def test_a_slow_reader_holds_the_writer_back(pair):
    ours, theirs, maddrs = pair
    release = asyncio.Event()
    received = 0

    async def late(stream):
        nonlocal received
        await release.wait()
        while chunk := await stream.read():
            received += len(chunk)
        done.set()

    done = asyncio.Event()
    chunk, sent = bytes(256 * 1024), 0
    async with serving(theirs, late):
        stream = await ours.connect(theirs.peer_id, maddrs)
        with suppress(TimeoutError):
            async with asyncio.timeout(1.5):
                while sent < 256 * 1024 * 1024:
                    stream.write(chunk)
                    sent += len(chunk)
                    await stream.drain()
        assert QUEUE_HIGH_BYTES < sent < 64 * 1024 * 1024, "drain() must wait while nobody reads"
        release.set()
        stream.close()
        async with asyncio.timeout(30):
            await done.wait()
        assert received == sent


@pytest.mark.parametrize("debug", ["", "1"])
async def test_what_libp2p_says_of_a_failure_is_told_on_demand(pair, debug, monkeypatch):
    monkeypatch.setenv("SHOAL_DEBUG", debug)
    with pytest.raises(HopClosed, match=r"^cannot open a stream") as caught:
        await pair[0].connect(Identity.generate().peer_id, [])
    assert ("failed to find any peer" in str(caught.value)) == bool(debug)


async def test_failures_to_connect_are_hop_closed(pair):
    ours, theirs, maddrs = pair
    with pytest.raises(HopClosed):  # reachable, but nothing serves there
        await ours.connect(theirs.peer_id, maddrs)
    with pytest.raises(HopClosed):  # somebody else answers at that address
        await ours.connect(Identity.generate().peer_id, [maddrs[0].rpartition("/p2p/")[0]])
    for peer_id, addrs in ((Identity.generate().peer_id, []), ("nonsense", []), (ours.peer_id, maddrs)):
        with pytest.raises(HopClosed) as caught:
            await ours.connect(peer_id, addrs)
        assert caught.value.peer_id == peer_id
    with pytest.raises(HopClosed):
        await ours.connect(theirs.peer_id, ["/not/an/address"])


@pytest.mark.parametrize("pair", ["libp2p"], indirect=True)
async def test_our_daemons_death_ends_its_streams(pair):
    ours, theirs, maddrs = pair
    async with serving(theirs, echo):
        stream = await ours.connect(theirs.peer_id, maddrs)
        ours._host.p2p._child.kill()
        async with asyncio.timeout(2):
            assert await stream.read() == b""
        with pytest.raises(HopClosed):
            await ours.connect(theirs.peer_id, maddrs)


@asynccontextmanager
async def echo_process(*args):
    """A peer in a process and a process group of its own: (process, address, its daemon)."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(  # noqa: ASYNC220  its output is awaited in a thread
        [sys.executable, str(ECHO_PEER), *args], stdout=subprocess.PIPE, text=True, env=env, start_new_session=True
    )
    try:
        maddr, daemon_pid = (await asyncio.to_thread(process.stdout.readline)).split()
        yield process, maddr, psutil.Process(int(daemon_pid))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def gone(daemon, timeout_s):
    """Whether a process ends in time; a zombie that nobody has reaped has ended."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if not daemon.is_running() or daemon.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:  # it went between the two questions
            return True
        await asyncio.sleep(0.05)
    return False


@pytest.mark.parametrize("loop", [[], ["uvloop"]], ids=["asyncio", "uvloop"])
async def test_a_killed_peer_is_noticed_and_leaves_no_daemon(loop):
    async with echo_process(*loop) as (process, maddr, daemon), open_host(HostConfig()) as host:
        transport = P2PTransport(host)
        stream = await transport.connect(maddr.rpartition("/")[2], [maddr])
        stream.write(b"ping")
        assert await exactly(stream, 4) == b"ping"
        process.kill()
        killed_at = time.monotonic()
        async with asyncio.timeout(20):
            assert await stream.read() == b""
        in_time(time.monotonic() - killed_at < 2)
        assert await gone(daemon, 10), "the daemon must not outlive its peer"


async def test_a_killed_daemon_is_noticed_by_the_other_side():
    async with echo_process() as (_, maddr, daemon), open_host(HostConfig()) as host:
        stream = await P2PTransport(host).connect(maddr.rpartition("/")[2], [maddr])
        stream.write(b"ping")
        assert await exactly(stream, 4) == b"ping"
        daemon.kill()
        async with asyncio.timeout(2):
            assert await stream.read() == b""


async def test_ctrl_c_in_the_terminal_spares_the_daemon():
    """It goes to the whole process group; a peer that drains still needs its daemon."""
    async with echo_process() as (process, _, daemon):
        assert os.getpgid(daemon.pid) != os.getpgid(process.pid)
        process.send_signal(signal.SIGSTOP)  # so that nothing but the signal itself can end the daemon
        os.killpg(process.pid, signal.SIGINT)
        assert not await gone(daemon, 0.5)
        process.send_signal(signal.SIGCONT)
        assert await gone(daemon, 10)
