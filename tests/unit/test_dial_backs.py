"""Who asks a node to dial back and then says nothing keeps others of its own network waiting, and nobody else."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from shoal.dht.reach import MAX_AT_ONCE, MAX_EACH, DialBackService


class Asker:
    """A question on its way, from an address; `told` is what came back."""

    def __init__(self, service: DialBackService, peer_id: str, address: str) -> None:
        self.reader, self.told, self.closed = asyncio.StreamReader(), b"", False
        info = SimpleNamespace(peer_id=peer_id, addr=f"/ip4/{address}/tcp/4001")
        self.task = asyncio.create_task(service.answer(info, self.reader, self))

    def write(self, data: bytes) -> None:
        self.told += data

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("address", "waiting"), [("11.0.0.1", MAX_EACH), ("127.0.0.1", MAX_AT_ONCE)])
async def test_silent_askers_of_one_network_leave_room_for_others(address: str, waiting: int) -> None:
    """Of networks that do not count they take all the room that there is."""
    listening = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    seen = SimpleNamespace(peer_id="guest", addrs=("/ip4/127.0.0.1/tcp/1",))

    async def list_peers() -> list[SimpleNamespace]:
        return [seen]

    service = DialBackService(SimpleNamespace(p2p=SimpleNamespace(list_peers=list_peers)))
    silent = [Asker(service, f"identity {number}", address) for number in range(2 * MAX_AT_ONCE)]
    await asyncio.sleep(0)
    assert sum(not each.closed for each in silent) == waiting
    guest = Asker(service, "guest", "11.9.9.9")
    guest.reader.feed_data(json.dumps({"port": listening.sockets[0].getsockname()[1]}).encode() + b"\n")
    await guest.task
    answer = json.loads(guest.told) if guest.told else None
    assert answer == (None if waiting == MAX_AT_ONCE else {"reached": True, "seen_at": "127.0.0.1"})
    for each in silent:
        each.task.cancel()
    await asyncio.gather(*(each.task for each in silent), return_exceptions=True)
    assert not service._busy
    listening.close()
    await listening.wait_closed()
