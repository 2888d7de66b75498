"""How a program that serves learns that it should leave: Ctrl-C, SIGTERM, a closed terminal. Knows no server."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, TypeVar

from shoal.dht.ending import end_soon
from shoal.dht.starting import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

T = TypeVar("T")


def on_leave(leave: Callable[[], None]) -> None:
    """Call `leave` on the running loop at every SIGINT and SIGTERM, and at the first SIGHUP if nothing came before it.

    SIGHUP comes when the terminal is closed, often twice, from the kernel and from the shell. What goes on until the
    program has left is printed nowhere. Where SIGHUP is ignored, as under `nohup`, it stays so.
    """
    loop, terminal = asyncio.get_running_loop(), list(filter(os.isatty, range(3)))
    asked = False

    def on_signal() -> None:
        nonlocal asked
        asked = True
        leave()

    def on_hangup() -> None:
        _let_go(terminal)
        if not asked:
            on_signal()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        loop.add_signal_handler(signal.SIGHUP, on_hangup)


def leave_on_signals(tell: Callable[[], None]) -> asyncio.Event:
    """Set, once `tell` has said so, at the first signal of `on_leave`'s; a second one ends the process at once."""
    leave = asyncio.Event()

    def on_signal() -> None:
        if leave.is_set():
            end_soon(INTERRUPTED)
            raise KeyboardInterrupt
        tell()
        leave.set()

    on_leave(on_signal)
    return leave


async def unless(leave: asyncio.Event, work: Awaitable[T]) -> T | None:
    """What `work` gives; None once `leave` is set, which cancels it. It runs in the caller's own task.

    Errors: those of `work`, but for what breaks on the way out.
    """
    try:
        async with asyncio.timeout(None) as limit:
            watching = asyncio.create_task(_end_at(leave, limit))
            try:
                found = await work
            finally:
                watching.cancel()
    except Exception:
        if leave.is_set():
            return None
        raise
    return None if leave.is_set() else found


async def _end_at(leave: asyncio.Event, limit: asyncio.Timeout) -> None:
    await leave.wait()
    limit.reschedule(asyncio.get_running_loop().time())


def _let_go(descriptors: Iterable[int]) -> None:
    """Writing to a terminal that is gone would be an error."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    os.close(null)
