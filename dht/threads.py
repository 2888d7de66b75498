"""Slow work that cannot be cancelled, beside the event loop: whoever stops waiting for it leaves it behind.

`asyncio.to_thread` is for work that ends soon: the process does not end before it has.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from shoal.dht.ending import leave_behind

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` gives, on a thread of its own. Cancelled, this returns at once, and the thread works on until it is
    done or the process ends. Errors: those of `work`."""
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # so that it can be set, whoever still waits for it

    def run() -> None:
        try:
            found = work(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001  (the thread's top: it is raised where it is awaited)
            outcome.set_exception(error)
        else:
            outcome.set_result(found)

    thread = threading.Thread(target=run, name="shoal-work", daemon=True)
    thread.start()
    try:
        return await asyncio.wrap_future(outcome)
    except asyncio.CancelledError:
        leave_behind(thread)
        raise
