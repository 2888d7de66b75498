"""How many sequences may be generated at a time, and whether new ones are taken at all; knows no endpoint."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shoal.client.api.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterator

FULL_RETRY_S = 1.0
LEAVING_RETRY_S = 10.0


class Admission:
    """Counts what is in flight. After `close` nothing new is let in; `idle` is set while nothing is in flight."""

    def __init__(self, most: int) -> None:
        self.most, self.in_flight = most, 0
        self.closed = False
        self.idle = asyncio.Event()
        self.idle.set()

    @contextmanager
    def enter(self, sequences: int) -> Iterator[None]:
        """Hold places for some sequences. Errors: `ApiError` 400 (never possible), 429 (not now), 503 (leaving)."""
        if self.closed:
            raise ApiError(503, "The server is shutting down.", code="shutting_down", retry_after_s=LEAVING_RETRY_S)
        if sequences > self.most:
            text = f"The request asks for {sequences} answers at once; this server makes {self.most} at a time."
            raise ApiError(400, text, param="n", code="too_many_answers")
        if self.in_flight + sequences > self.most:
            text = f"The server is busy with {self.in_flight} answers, and makes {self.most} at a time: try again soon."
            raise ApiError(429, text, code="rate_limit_exceeded", retry_after_s=FULL_RETRY_S)
        self.in_flight += sequences
        self.idle.clear()
        try:
            yield
        finally:
            self.in_flight -= sequences
            if not self.in_flight:
                self.idle.set()

    def close(self) -> None:
        """Let nothing new in."""
        self.closed = True
