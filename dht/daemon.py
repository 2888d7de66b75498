"""hivemind's daemon wrapper with what it lacks: private sockets, and calls that fail when the daemon dies. No policy.

As shipped, a call to a dead daemon waits forever, `is_alive` stays true and sockets lie in the shared temporary folder.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from shoal.dht.foreign import (
    P2P,
    P2PDaemonError,
    PeerInfo,
    p2pd_pb2,
    raise_if_failed,
    read_pbmsg_safe,
    write_pbmsg,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# A Ctrl-C in the terminal goes to the whole process group: the daemon must not die of it while we still drain.
OWN_GROUP = "import os, sys; os.setpgid(0, 0); os.execv(sys.argv[1], sys.argv[1:])"
SETTINGS = '{"Relay": {"Enabled": false}}'  # the option for relays only switches on what is on unless a file says no
DEATH_NOTE = "our own libp2p daemon has died"


class Handling(dict[Any, "asyncio.Task[None]"]):
    """Requests that are being answered, by their number; one that has ended, however it did, is not among them."""

    def __setitem__(self, number: Any, task: asyncio.Task[None]) -> None:
        super().__setitem__(number, task)
        task.add_done_callback(lambda _: self.pop(number, None))


class Waiting(dict[Any, "asyncio.Future[Any]"]):
    """Calls whose answers somebody waits for, by their number: an answer that meets a call which has just been given up
    would end hivemind's reader, and no later call would ever be answered."""

    def __contains__(self, number: Any) -> bool:
        call = self.get(number)
        return call is not None and not call.done()


class Daemon(P2P):  # type: ignore[misc]  # hivemind is untyped
    """One libp2p daemon. died: set as soon as the daemon's output ends, which is when it dies."""

    _SETTINGS = ""

    def __init__(self) -> None:
        super().__init__()
        self.died = asyncio.Event()

    async def ask(self, request: Any) -> Any:
        """The daemon's answer over a connection of its own, closed whatever happens: hivemind's own calls leave theirs
        open when they are cancelled. Errors: `P2PDaemonError`, `OSError`, `EOFError`."""
        reader, writer = await self._client.control.daemon_connector.open_connection()
        try:
            await write_pbmsg(writer, request)
            response = p2pd_pb2.Response()
            await read_pbmsg_safe(reader, response)
        finally:
            writer.close()
        raise_if_failed(response)
        return response

    async def dial(self, peer_id: Any, maddrs: Sequence[Any]) -> None:
        """Connect to a peer. Errors: as for `ask`."""
        wanted = p2pd_pb2.ConnectRequest(peer=peer_id.to_bytes(), addrs=[maddr.to_bytes() for maddr in maddrs])
        await self.ask(p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=wanted))

    async def part(self, peer_id: Any) -> None:
        """Close every connection to a peer. Errors: as for `ask`."""
        gone = p2pd_pb2.DisconnectRequest(peer=peer_id.to_bytes())
        await self.ask(p2pd_pb2.Request(type=p2pd_pb2.Request.DISCONNECT, disconnect=gone))

    async def list_peers(self) -> tuple[Any, ...]:
        """Who is connected. Errors: as for `ask`."""
        response = await self.ask(p2pd_pb2.Request(type=p2pd_pb2.Request.LIST_PEERS))
        return tuple(PeerInfo.from_protobuf(peer) for peer in response.peers)

    @classmethod
    async def create(cls, *args: Any, **kwargs: Any) -> Any:
        """As hivemind's, but that it forgets requests whose asker has gone, which it would keep for ever, and bears
        answers that nobody waits for."""
        daemon = await super().create(*args, **kwargs)
        daemon._client.control._handler_tasks = Handling()
        daemon._client.control._pending_calls = Waiting()
        return daemon

    @classmethod
    def _make_process_args(cls, *args: Any, **kwargs: Any) -> list[str]:
        kwargs["f"] = cls._SETTINGS
        if kwargs.get("autoRelay"):
            kwargs["relayDiscovery"] = False  # else libp2p waits three minutes, or for four relays, before it asks one
        return [sys.executable, "-I", "-S", "-c", OWN_GROUP, *P2P._make_process_args(*args, **kwargs)]

    async def _read_outputs(self, ready: asyncio.Future[None]) -> None:
        await super()._read_outputs(ready)  # returns at the end of output; an orderly shutdown cancels it instead
        self._alive = False
        self.died.set()
        if self._client is not None:
            for task in (self._client.control._read_task, self._client.control._write_task):
                if task is not None:
                    task.add_done_callback(_seen)
            for call in self._client.control._pending_calls.values():
                if not call.done():
                    call.set_exception(P2PDaemonError(DEATH_NOTE))

    async def _call_unary_protobuf_handler(self, *args: Any, **kwargs: Any) -> Any:
        if self.died.is_set():
            raise P2PDaemonError(DEATH_NOTE)
        return await super()._call_unary_protobuf_handler(*args, **kwargs)


def _seen(task: asyncio.Task[None]) -> None:
    """Take notice of how a task ended: hivemind's reader and writer fail with their daemon, and nobody asks."""
    if not task.cancelled():
        task.exception()


def daemon_in(folder: Path) -> type[Daemon]:
    """The class whose daemons keep their sockets in `folder`; hivemind takes their place from a class attribute."""
    settings = folder / "daemon.json"
    settings.write_text(SETTINGS)
    return type("Daemon", (Daemon,), {"_UNIX_SOCKET_PREFIX": f"/unix{folder}/", "_SETTINGS": str(settings)})
