"""Who gets in: API keys, and the Host and Origin of a request. Knows no endpoint and no model.

A page of another site can make a browser ask this server. Such requests carry an Origin, which must be ours or allowed.
By DNS rebinding a page can take our address under a name of its own; its requests then carry that name as Host. An
address as Host cannot be rebound, so addresses, localhost and the names that were allowed are all that is heard.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from shoal.client.api.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shoal.client.api.options import Doors

KEYLESS: web.AppKey[set[str]] = web.AppKey("keyless", set)  # paths that need no API key: health, a page's own files
CALLER = "shoal.caller"  # of a request: who asks, by the API key
METHODS = "GET, POST, OPTIONS"
ALLOWED_HEADERS = "Authorization, Content-Type, X-Api-Key"
HEADERS = re.compile(r"[\w-]{1,64}(, ?[\w-]{1,64}){0,63}", re.ASCII)
PREFLIGHT_S = "600"


class Gate:
    """Middleware `check`; `allow_origin` puts what browsers want to see on every answer."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors
        self._keys = [_digest(key) for key in sorted(doors.keys)]
        self._hosts = frozenset(name.lower().rstrip(".") for name in doors.hosts) | {"localhost"}
        self._origins = frozenset(origin.lower().rstrip("/") for origin in doors.origins)

    async def check(
        self, request: web.Request, serve: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Serve a request that may come in. Errors: `ApiError` 401, 403."""
        self._check_host(request)
        self._check_origin(request)
        if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
            return web.Response(status=204)
        if self._keys and request.path not in request.app[KEYLESS]:
            self._check_key(request)
        return await serve(request)

    async def allow_origin(self, request: web.Request, response: web.StreamResponse) -> None:
        """Tell the browser of an allowed page that it may read the answer."""
        response.headers["X-Content-Type-Options"] = "nosniff"
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None or not self._knows(origin, request.host):
            return
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = "*"
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        if request.method == hdrs.METH_OPTIONS:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = METHODS
            # Clients add headers of their own (x-stainless-os), and a page that may ask at all may send them.
            wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = (
                wanted if HEADERS.fullmatch(wanted) else ALLOWED_HEADERS
            )
            response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = PREFLIGHT_S

    def _check_host(self, request: web.Request) -> None:
        name = hostname(request.headers.get(hdrs.HOST, ""))
        if name not in self._hosts and not is_address(name):
            raise ApiError(
                403, f"This server does not answer as {name[:80]!r}; start it with --allow-host {name[:80]}.",
                code="host_not_allowed",
            )  # fmt: skip

    def _check_origin(self, request: web.Request) -> None:
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and not self._knows(origin, request.host):
            raise ApiError(
                403, f"Pages of {origin[:80]} may not ask this server; start it with --allow-origin {origin[:80]}.",
                code="origin_not_allowed",
            )  # fmt: skip

    def _knows(self, origin: str, host: str) -> bool:
        origin = origin.lower()
        own = (f"http://{host.lower()}", f"https://{host.lower()}")  # the latter behind a proxy that speaks TLS
        return origin in self._origins or "*" in self._origins or origin in own

    def _check_key(self, request: web.Request) -> None:
        scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() != "bearer":
            key = request.headers.get("X-Api-Key", "")
        if not key.strip():
            message = "An API key is needed: send `Authorization: Bearer KEY`."
            raise ApiError(401, message, code="missing_api_key")
        given = _digest(key.strip())
        # All of them are compared, so that the time tells nothing about which one was right.
        if not sum(hmac.compare_digest(given, known) for known in self._keys):
            raise ApiError(401, "This API key is not known here.", code="invalid_api_key")
        request[CALLER] = given.hex()


def caller(request: web.Request) -> str:
    """A name for who asks, one for each API key; empty where none are asked for."""
    name: str = request.get(CALLER, "")
    return name


def hostname(host: str) -> str:
    """The name or address of a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def is_address(name: str) -> bool:
    """Whether this is an IP address and no name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
