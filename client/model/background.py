"""An event loop on a thread of its own, for callers without one: scripts, notebooks, many threads. Knows no swarm."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shoal.peer.errors import SessionClosed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Future
    from contextlib import AbstractAsyncContextManager

T = TypeVar("T")
END_S = 5.0  # how long a process that exits waits for what was left open


class Held(Generic[T]):
    """An async context kept open by a task of its own until `close`, wherever that is called from. See `hold`."""

    def __init__(self, context: AbstractAsyncContextManager[T]) -> None:
        self._context = context
        self._ending = asyncio.Event()
        self._ready: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep())

    @property
    def value(self) -> T:
        """What the context gave."""
        return self._ready.result()

    async def close(self) -> None:
        """Leave the context; errors on the way out are nobody's any more."""
        self._ending.set()
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.exception()  # taken note of

    async def _keep(self) -> None:
        try:
            async with self._context as value:
                if not self._ready.cancelled():
                    self._ready.set_result(value)
                    await self._ending.wait()
        except Exception as error:
            if self._ready.done():
                raise
            self._ready.set_exception(only(error))
        finally:
            if not self._ready.done():  # whoever waits for it may be in another thread
                self._ready.set_exception(SessionClosed("it was closed before it had opened"))
                self._ready.exception()  # or be gone


async def hold(context: AbstractAsyncContextManager[T]) -> Held[T]:
    """Enter `context` and keep it open. Errors: what entering raises."""
    held = Held(context)
    try:
        await held._ready
    except asyncio.CancelledError:
        held._task.cancel()
        raise
    return held


def only(error: BaseException) -> BaseException:
    """The first error of a group, groups in groups included: a caller wants one."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class Background:
    """The loop's thread, which ends with the process; what is open then is closed first (`at_exit`)."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="shoal", daemon=True)
        self._thread.start()
        self._last: list[Callable[[], Coroutine[Any, Any, object]]] = []
        atexit.register(self._finish)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and wait for it, from any other thread, whether that runs a loop itself or not. Ctrl-C
        cancels it and goes on as `KeyboardInterrupt`. Errors: those of `work`, one where it raises a group."""
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("This call waits for Shoal's own event loop, so it cannot be made from within it.")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except ExceptionGroup as group:
            raise only(group) from None
        except BaseException:
            future.cancel()
            raise

    def start(self, work: Coroutine[Any, Any, object]) -> Future[object]:
        """Run `work` on the loop without waiting for it: safe in a finalizer."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def at_exit(self, close: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Close something before the process ends."""
        self._last.append(close)

    def not_at_exit(self, close: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """It is closed already."""
        if close in self._last:
            self._last.remove(close)

    def _finish(self) -> None:
        async def close_all() -> None:
            await asyncio.gather(*(close() for close in self._last), return_exceptions=True)

        with contextlib.suppress(TimeoutError, CancelledError, KeyboardInterrupt):
            asyncio.run_coroutine_threadsafe(close_all(), self._loop).result(END_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(END_S)


_lock = threading.Lock()
_background: Background | None = None


def background() -> Background:
    """The process's one, started when it is first needed."""
    global _background
    with _lock:
        if _background is None:
            _background = Background()
        return _background
