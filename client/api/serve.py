"""An API server's life: listen, read the model, join, answer, leave. Puts the parts together."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web
from shoal.client.api.app import make_app
from shoal.client.api.listening import BACKLOG, url_of
from shoal.client.api.state import API
from shoal.client.cli.terminal import tell, write
from shoal.client.local import load_model
from shoal.client.options import Model
from shoal.client.serving import Serving
from shoal.client.swarm import join_swarm
from shoal.dht.leaving import leave_on_signals, unless
from shoal.dht.threads import in_thread

if TYPE_CHECKING:
    from socket import socket

    from shoal.client.api.options import ApiOptions
    from shoal.dht.invite import Invite

LAST_WRITE_S = 2.0  # for answers that are made but not sent when the server leaves


@dataclass(frozen=True)
class ServeConfig:
    """Which model of which swarm. `grace_s`: how long what runs may go on after a signal to leave."""

    model: str
    invite: Invite
    options: ApiOptions
    revision: str | None = None
    dtype: str | None = None
    grace_s: float = 30.0
    json: bool = False


async def serve(config: ServeConfig, listening: socket) -> None:
    """Serve until SIGINT, SIGTERM or the terminal's end; a second signal leaves at once.

    Errors: those of `blocks`, `JoinError`, `HostError`.
    """
    leave = leave_on_signals(lambda: tell("finishing what runs, then leaving (again: at once)"))
    if not os.environ.get("SHOAL_DEBUG"):  # it tells a stack for every line of bad HTTP; our own faults are told anyway
        logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    tell(f"reading {config.model}")
    model = await unless(leave, in_thread(load_model, config.model, config.dtype, config.revision))
    if model is None:
        return
    gc.freeze()  # a collector's round through all that is loaded would hold every answer up for a tenth of a second
    tell("joining the swarm")
    spec = model.ends.spec
    shape = Model(spec.n_blocks, spec.hidden_size, model.checkpoint.revision)
    async with AsyncExitStack() as stack:
        swarm = await unless(leave, stack.enter_async_context(join_swarm(config.invite, shape)))
        if swarm is not None:
            await _answer(make_app(Serving(swarm, model), config.options), listening, config, leave)


async def _answer(app: web.Application, listening: socket, config: ServeConfig, leave: asyncio.Event) -> None:
    # aiohttp closes a connection on which no whole head of a request has come for `keepalive_timeout`.
    runner = web.AppRunner(
        app, handler_cancellation=True, access_log=None, keepalive_timeout=config.options.read_s,
        shutdown_timeout=LAST_WRITE_S,
    )  # fmt: skip
    await runner.setup()
    if runner.server is None:
        raise RuntimeError("the server was not made")
    try:
        server = await asyncio.get_running_loop().create_server(runner.server, sock=listening, backlog=BACKLOG)
        _announce(url_of(listening), app, config)
        await leave.wait()
        server.close()
        admission = app[API].admission
        admission.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(config.grace_s):
                await admission.idle.wait()
    finally:
        await runner.cleanup()


def _announce(url: str, app: web.Application, config: ServeConfig) -> None:
    missing = app[API].view.missing()
    if config.json:
        event = {"event": "serving", "url": url, "model": config.options.name, "missing_blocks": missing}
        write(json.dumps(event) + "\n")
        return
    write(f"{config.options.name} is at {url} (OpenAI's interface under {url}/v1). Ctrl-C ends it.\n")
    if missing:
        tell(f"blocks {', '.join(map(str, missing))} have no peer yet: requests get 503 until one serves them")
