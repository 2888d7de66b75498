"""Reads a request's JSON body within its limits of bytes and time; knows no field of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import web
from shoal.client.api.errors import ApiError
from shoal.client.api.jsonbody import parse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.client.api.options import ApiOptions

INLINE_BYTES = 1 << 17  # a longer body is read off the event loop, which must not stall


async def read_json(request: web.Request, options: ApiOptions) -> Mapping[str, Any]:
    """The request's object. Errors: `ApiError` 400 (no JSON), 408 (too slow), 413 (too long), 415 (another type)."""
    if request.content_type != "application/json":
        message = f"Send `Content-Type: application/json`, not {request.content_type[:80]!r}."
        raise ApiError(415, message, code="unsupported_media_type")
    if (request.charset or "utf-8").lower() not in ("utf-8", "utf8"):
        raise ApiError(415, "JSON is sent in UTF-8.", code="unsupported_media_type")
    body = await _read(request, options)
    return parse(body) if len(body) <= INLINE_BYTES else await asyncio.to_thread(parse, body)


async def _read(request: web.Request, options: ApiOptions) -> bytes:
    if (request.content_length or 0) > options.max_body:
        raise _too_long(options)
    body = bytearray()
    try:
        async with asyncio.timeout(options.read_s):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > options.max_body:
                    raise _too_long(options)
    except TimeoutError:
        raise ApiError(408, f"The request did not arrive within {options.read_s:g} s.", code="timeout") from None
    except (web.RequestPayloadError, ValueError) as error:
        raise ApiError(400, f"The body cannot be read: {error}.", code="invalid_body") from None
    return bytes(body)


def _too_long(options: ApiOptions) -> ApiError:
    return ApiError(413, f"The body is longer than {options.max_body} bytes.", code="request_too_large")
