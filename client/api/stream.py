"""Server-sent events: JSON in, bytes out, at the reader's pace; knows nothing of what the events mean.

The format is that of the HTML standard's event streams, ended by `data: [DONE]` as OpenAI's clients expect.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from aiohttp import hdrs, web

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.client.api.errors import ApiError

KEEP_OPEN = {
    hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-cache",
    "X-Accel-Buffering": "no",  # proxies like nginx would gather the events
}
_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}  # where some clients end lines
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class EventStream:
    """Writes events of one answer. A reader that takes nothing for `write_s` is cut off."""

    def __init__(self, request: web.Request, headers: Mapping[str, str], write_s: float) -> None:
        self._request, self._write_s = request, write_s
        self._response = web.StreamResponse(headers={**KEEP_OPEN, **headers})
        self._held = bytearray()

    @property
    def response(self) -> web.StreamResponse:
        """What the endpoint returns in the end."""
        return self._response

    def add(self, event: Mapping[str, Any]) -> None:
        """Put an event into the next write."""
        self._held += f"data: {_encode(event).translate(_LINE_ENDS)}\n\n".encode("utf-8", "replace")

    async def flush(self) -> None:
        """Send what was added, in one write. Waits while the reader lags behind, and so does who makes the events.

        Errors: `ConnectionResetError` when the reader is gone or has been cut off.
        """
        if not self._held:
            return
        data, self._held = bytes(self._held), bytearray()
        try:
            async with asyncio.timeout(self._write_s):
                if not self._response.prepared:
                    await self._response.prepare(self._request)
                await self._response.write(data)
        except TimeoutError:
            if (transport := self._request.transport) is not None:
                transport.abort()
            raise ConnectionResetError("the reader takes no bytes") from None

    async def end(self) -> None:
        """Say that all went well."""
        self._held += b"data: [DONE]\n\n"
        await self.flush()
        await self._response.write_eof()

    async def fail(self, error: ApiError) -> None:
        """An error after the headers were sent can only be an event; no [DONE] follows."""
        self.add(error.body)
        await self.flush()
        await self._response.write_eof()
