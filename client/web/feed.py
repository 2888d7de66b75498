"""The swarm, live: one picture at a time for all who look on, sent to each when it has changed. While somebody looks
on, links to the peers are kept, so that one that dies is seen at once."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Final

from aiohttp import hdrs, web
from shoal.client.web.files import SAFETY
from shoal.client.web.picture import Scene, picture

if TYPE_CHECKING:
    from shoal.client.serving import Serving

PERIOD_S: Final = 1.0
HEARTBEAT_S: Final = 5.0  # by then something is sent, changed or not: the page knows that the line stands
WRITE_S: Final = 20.0
MOST_ONLOOKERS: Final = 256
HEADERS: Final = {**SAFETY, hdrs.CACHE_CONTROL: "no-store", "X-Accel-Buffering": "no"}  # no proxy may gather events


class Feed:
    """`/swarm.json` and `/swarm/live` of one serving; `name`: what its model is called."""

    def __init__(self, serving: Serving, name: str) -> None:
        self._serving, self._name = serving, name
        self._taken_at, self._taken = -PERIOD_S, ""
        self._onlookers = 0
        self._closing = asyncio.Event()

    async def once(self, _: web.Request) -> web.Response:
        """The picture of now."""
        return web.json_response(text=self._now(), headers=HEADERS)

    async def live(self, request: web.Request) -> web.StreamResponse:
        """The picture of now, and again when it has changed, as server-sent events, until either side leaves."""
        if self._onlookers >= MOST_ONLOOKERS:
            return web.json_response({"error": {"message": "Too many look on."}}, status=429, headers=HEADERS)
        response = web.StreamResponse(headers={**HEADERS, hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8"})
        self._onlookers += 1
        try:
            with self._serving.swarm.presence.watching():
                await self._send(request, response)
        except (ConnectionError, TimeoutError):  # gone, or takes nothing
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._onlookers -= 1
        return response

    async def close(self, _: web.Application) -> None:
        """Let the onlookers go: the server leaves."""
        self._closing.set()

    async def _send(self, request: web.Request, response: web.StreamResponse) -> None:
        sent, sent_at = "", 0.0
        clock = asyncio.get_running_loop().time
        await response.prepare(request)
        while not self._closing.is_set():
            text = self._now()
            if _without_time(text) != _without_time(sent) or clock() - sent_at >= HEARTBEAT_S:
                async with asyncio.timeout(WRITE_S):
                    await response.write(f"data: {text}\n\n".encode())
                sent, sent_at = text, clock()
            try:
                async with asyncio.timeout(PERIOD_S):
                    await self._closing.wait()
            except TimeoutError:
                continue

    def _now(self) -> str:
        """Taken at most twice a period, however many ask."""
        now = asyncio.get_running_loop().time()
        if now - self._taken_at >= PERIOD_S / 2:
            self._taken_at, self._taken = now, json.dumps(self._picture(), separators=(",", ":"))
        return self._taken

    def _picture(self) -> dict[str, Any]:
        serving, swarm, last = self._serving, self._serving.swarm, self._serving.last
        newest = (last.pieces[-1].at if last.pieces else last.started_at) if last else 0.0
        scene = Scene(
            self._name, time.time(), swarm.view, swarm.knowledge(), swarm.presence, swarm.other_revisions,
            serving.in_flight, last, time.perf_counter() - newest,
        )  # fmt: skip
        return picture(scene)


def _without_time(text: str) -> str:
    """What makes two pictures the same: all but when they were taken, which stands first."""
    return text.partition(",")[2]
