"""Which path of the pages leads where. Knows no model and decides nothing about the swarm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web
from shoal.client.web.feed import Feed
from shoal.client.web.files import SAFETY, read_files

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shoal.client.serving import Serving
    from shoal.client.web.files import File

PAGES = {"/": "chat.html", "/swarm": "swarm.html"}


def add_pages(app: web.Application, serving: Serving, name: str) -> frozenset[str]:
    """Add the chat page, the swarm page and what they need; `name`: what the model is called.

    Returns the paths that show nothing of the swarm and need no API key: the pages' own files.
    """
    files = read_files()
    paths = {path: files[file] for path, file in PAGES.items()}
    paths |= {f"/static/{file}": one for file, one in files.items() if not file.endswith(".html")}
    for path, one in paths.items():
        app.router.add_get(path, _serve(one))
    feed = Feed(serving, name)
    app.router.add_get("/swarm.json", feed.once)
    app.router.add_get("/swarm/live", feed.live)
    app.router.add_get("/favicon.ico", _to_icon)
    app.on_shutdown.append(feed.close)
    return frozenset({*paths, "/favicon.ico"})


def _serve(file: File) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def serve(request: web.Request) -> web.Response:
        return file.answer(request)

    return serve


async def _to_icon(_: web.Request) -> web.Response:
    return web.Response(status=308, headers={**SAFETY, "Location": "/static/icon.svg"})
