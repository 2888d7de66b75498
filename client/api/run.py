"""The answers to one request while they are made, of one prompt or of several, counted as they come. Knows no HTTP."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from shoal.client.api.metrics import Metrics
    from shoal.client.generation import Piece
    from shoal.client.serving import Answer, Ask, Serving, Stream


class Run:
    """`async with Run(...) as run: async for news in run.batches()`. `answers`: of the first ask, then of the next.

    Leaving it ends what still runs and frees its KV on the peers.
    """

    def __init__(self, serving: Serving, asks: Sequence[Ask], metrics: Metrics) -> None:
        self._asks, self._metrics = asks, metrics
        self._streams = [serving.stream(ask) for ask in asks]
        self.answers: list[Answer] = [answer for stream in self._streams for answer in stream.answers]
        self.ended = False  # the last batch has been given
        self._last: list[Piece | None] = [None] * len(self.answers)
        self._news: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue()
        self._tasks = asyncio.TaskGroup()
        self._running: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        first = 0
        for stream in self._streams:
            self._running.append(self._tasks.create_task(self._follow(stream, first)))
            first += len(stream.answers)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._running:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)
        for ask, stream in zip(self._asks, self._streams, strict=True):
            self._metrics.prompt(len(ask.prompt_ids))
            for answer in stream.answers:
                self._metrics.answered(answer)

    async def batches(self) -> AsyncIterator[list[tuple[int, Piece]]]:
        """All news since the last time, as soon as there is any, until every answer has ended: (answer, piece).

        Errors: those of the client's generation.
        """
        left = len(self.answers)
        while left:
            batch = [await self._next()]
            while not self._news.empty():
                batch.append(await self._next())
            left -= sum(bool(piece.finish) for _, piece in batch)
            self.ended = not left
            yield batch

    async def finish(self) -> None:
        """Wait until every answer has ended. Errors: as `batches`."""
        async for _ in self.batches():
            pass

    async def _next(self) -> tuple[int, Piece]:
        news = await self._news.get()
        if isinstance(news, Exception):
            raise news
        at, piece = news
        self._metrics.piece(self.answers[at], piece, self._last[at])
        self._last[at] = piece
        return news

    async def _follow(self, stream: Stream, first: int) -> None:
        try:
            async with stream:
                async for index, piece in stream:
                    self._news.put_nowait((first + index, piece))
        except Exception as error:  # noqa: BLE001  (the task's top: it is raised where the pieces are read)
            self._news.put_nowait(error)
