"""Who calls a peer's own port and never says who it is keeps it from its own network alone."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
from shoal.dht.identity import Identity
from shoal.peer import direct
from shoal.peer.direct import MAX_GREETED, MAX_GREETED_EACH, DirectPort, dial


@pytest.mark.parametrize(("crowd", "others", "let_in"), [("11.0.0.0/24", "11.0.1.0/24", True), (None, None, False)])
async def test_silent_callers_of_one_network_leave_room_for_others(monkeypatch, crowd, others, let_in):
    """Callers of our own network share all the room that there is."""
    silent: list[socket.socket] = []

    def network_of(maddr: str) -> str | None:
        port = int(maddr.split("/")[4])
        return crowd if port in {caller.getsockname()[1] for caller in silent} else others

    monkeypatch.setattr(direct, "network_of", network_of, raising=False)
    here, there = Identity.generate(), Identity.generate()
    with socket.create_server(("127.0.0.1", 0), backlog=2 * MAX_GREETED) as listening:
        listening.setblocking(False)
        proved: asyncio.Queue = asyncio.Queue()
        port = DirectPort(there, listening, ())
        silent += [socket.create_connection(("127.0.0.1", port.port)) for _ in range(MAX_GREETED)]
        task = asyncio.create_task(port.run(proved.put_nowait))
        try:
            await asyncio.sleep(0.2)
            assert port._greeted.total() == (MAX_GREETED_EACH if crowd else MAX_GREETED)
            if let_in:
                stream = await dial(here, there.peer_id, "127.0.0.1", port.port)
                assert (await proved.get()).remote == here.peer_id
                stream.close()
                assert set(port._greeted) == {crowd}
            else:
                with pytest.raises(OSError):  # noqa: PT011 - whatever TLS makes of a closed connection
                    await dial(here, there.peer_id, "127.0.0.1", port.port)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            for caller in silent:
                caller.close()
