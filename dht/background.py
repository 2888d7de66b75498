"""Work that goes on while a block of code runs and ends with it. Knows nothing of what the work is."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` until the block ends. An error of the block passes unwrapped; one of the work cancels the block."""
    failure: BaseException | None = None
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work)
        try:
            yield
        except BaseException as error:  # noqa: BLE001  raised again below, outside the group that would wrap it
            failure = error
        finally:
            task.cancel()
    if failure is not None:
        raise failure
